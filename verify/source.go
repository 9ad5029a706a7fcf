package verify

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
)

// repository is what is asked of an OCI repository; oras-go's
// remote.Repository has it.
type repository interface {
	content.Fetcher
	content.Resolver
	registry.ReferrerLister
	Blobs() registry.BlobStore
	Manifests() registry.ManifestStore
}

// Repository is a [Source] over a repository of an OCI registry.
func Repository(repo repository) Source { return remoteSource{repo} }

type remoteSource struct{ repo repository }

func (s remoteSource) Referrers(ctx context.Context, subject digest.Digest) (list []ocispec.Descriptor, err error) {
	err = s.repo.Referrers(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject}, "", func(page []ocispec.Descriptor) error {
		list = append(list, page...)
		return nil
	})
	return list, err
}

func (s remoteSource) Fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return content.FetchAll(ctx, s.repo, desc)
}

// Tagged implements [Tagger].
func (s remoteSource) Tagged(ctx context.Context, tag string) (ocispec.Descriptor, bool, error) {
	return resolved(s.repo.Resolve(ctx, tag))
}

func resolved(desc ocispec.Descriptor, err error) (ocispec.Descriptor, bool, error) {
	if errors.Is(err, errdef.ErrNotFound) {
		return desc, false, nil
	}
	return desc, err == nil, err
}

// Layout is a [Source] over an OCI image layout in a folder, such as an
// evidence pack.
func Layout(ctx context.Context, dir string) (Source, error) {
	store, err := oci.NewWithContext(ctx, dir)
	if err != nil {
		return nil, err
	}
	return layoutSource{store}, nil
}

type layoutSource struct{ store *oci.Store }

func (s layoutSource) Referrers(ctx context.Context, subject digest.Digest) (list []ocispec.Descriptor, err error) {
	// The store knows nodes by descriptor and compares digest and size, so
	// the subject's own descriptor is looked up first.
	node, err := s.store.Resolve(ctx, subject.String())
	if err != nil {
		return nil, nil // the pack does not hold it, so nothing in it speaks of it
	}
	return registry.Referrers(ctx, s.store, node, "")
}

func (s layoutSource) Fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	rc, err := s.store.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return content.ReadAll(io.LimitReader(rc, desc.Size+1), desc)
}

// Tagged implements [Tagger].
func (s layoutSource) Tagged(ctx context.Context, tag string) (ocispec.Descriptor, bool, error) {
	return resolved(s.store.Resolve(ctx, tag))
}
