package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

// A Manifest is a stored manifest, byte for byte as it was pushed.
type Manifest struct {
	Descriptor ocispec.Descriptor // with the artifact type
	Subject    digest.Digest
	Body       []byte
}

// Manifest returns the manifest that a tag or digest names in a repository.
func (r *Registry) Manifest(ctx context.Context, actor access.Actor, repo, reference string) (Manifest, error) {
	if err := r.mayPull(actor, repo); err != nil {
		return Manifest{}, err
	}
	var m Manifest
	var row manifestRow
	err := r.view(ctx, func(rd store.Reader) (err error) {
		if m, err = stat(rd, repo, reference); err != nil {
			return err
		}
		ok, err := load(rd, key("manifest", string(m.Descriptor.Digest)), &row)
		if err == nil && !ok {
			err = errGone(m.Descriptor.Digest)
		}
		return err
	})
	if err != nil {
		return Manifest{}, err
	}
	m.Body, err = r.manifestBytes(ctx, row)
	return m, err
}

func (r *Registry) manifestBytes(ctx context.Context, row manifestRow) ([]byte, error) {
	if row.Blob == "" {
		return row.Body, nil
	}
	b, err := r.blobs.Open(ctx, row.Blob)
	if err != nil {
		return nil, fmt.Errorf("opening a manifest: %w", err)
	}
	defer b.Close()
	return io.ReadAll(b)
}

// StatManifest describes the manifest that a tag or digest names.
func (r *Registry) StatManifest(ctx context.Context, actor access.Actor, repo, reference string) (ocispec.Descriptor, error) {
	if err := r.mayPull(actor, repo); err != nil {
		return ocispec.Descriptor{}, err
	}
	var m Manifest
	err := r.view(ctx, func(rd store.Reader) (err error) {
		m, err = stat(rd, repo, reference)
		if err != nil {
			return err
		}
		if ok, err := exists(rd, key("manifest", string(m.Descriptor.Digest))); err != nil || !ok {
			return orElse(err, errGone(m.Descriptor.Digest))
		}
		return nil
	})
	return m.Descriptor, err
}

func (r *Registry) mayPull(actor access.Actor, repo string) error {
	if err := checkName(repo); err != nil {
		return err
	}
	return actor.Authorize(access.Pull, repo)
}

// stat finds a manifest in a repository.
func stat(rd store.Reader, repo, reference string) (Manifest, error) {
	d := digest.Digest(reference)
	if strings.Contains(reference, ":") {
		if err := checkDigest(d); err != nil {
			return Manifest{}, err
		}
	} else {
		if err := checkTag(reference); err != nil {
			return Manifest{}, err
		}
		var now tagRow
		ok, err := load(rd, key("tag", repo, reference), &now)
		if err != nil {
			return Manifest{}, err
		}
		if !ok {
			return Manifest{}, fmt.Errorf("%w: %s has no tag %s", ErrManifestUnknown, repo, reference)
		}
		d = now.Digest
	}
	var held heldRow
	ok, err := load(rd, key("held", repo, string(d)), &held)
	if err != nil {
		return Manifest{}, err
	}
	if !ok {
		return Manifest{}, fmt.Errorf("%w: %s has no %s", ErrManifestUnknown, repo, d)
	}
	return Manifest{
		Descriptor: ocispec.Descriptor{MediaType: held.MediaType, Digest: d, Size: held.Size, ArtifactType: held.ArtifactType},
		Subject:    held.Subject,
	}, nil
}

// Tags lists the tags of a repository in byte order, after last, at most n of
// them (all if n is negative), and whether there are more.
func (r *Registry) Tags(ctx context.Context, actor access.Actor, repo, last string, n int) (tags []string, more bool, err error) {
	if err := r.mayPull(actor, repo); err != nil {
		return nil, false, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		if ok, err := exists(rd, key("repo", repo)); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("%w: %s", ErrNameUnknown, repo))
		}
		rg := under("tag", repo)
		if last != "" {
			rg.From = append(key("tag", repo, last), 0)
		}
		tags, more, err = names(rd, rg, 1, n)
		return err
	})
	return tags, more, err
}

// Repositories lists the repositories the actor may read, like [Registry.Tags].
func (r *Registry) Repositories(ctx context.Context, actor access.Actor, last string, n int) (repos []string, more bool, err error) {
	if actor.ID == "" {
		return nil, false, actor.Authorize(access.Pull, "")
	}
	err = r.view(ctx, func(rd store.Reader) error {
		rg := under("repo")
		if last != "" {
			rg.From = append(key("repo", last), 0)
		}
		all, _, err := names(rd, rg, 0, -1)
		for _, repo := range all {
			if actor.Authorize(access.Pull, repo) != nil {
				continue
			}
			if n >= 0 && len(repos) == n {
				more = true
				break
			}
			repos = append(repos, repo)
		}
		return err
	})
	return repos, more, err
}

// names reads one part of the keys of a range.
func names(rd store.Reader, rg store.Range, part, n int) (list []string, more bool, err error) {
	rg.KeysOnly = true
	for row, err := range rd.Scan(rg) {
		if err != nil {
			return nil, false, err
		}
		if n >= 0 && len(list) == n {
			return list, true, nil
		}
		list = append(list, parts(row.Key)[part])
	}
	return list, false, nil
}

// Referrers lists what was pushed with this subject, the newest first, of one
// artifact type unless it is "". A subject nobody speaks of has none.
func (r *Registry) Referrers(ctx context.Context, actor access.Actor, repo string, subject digest.Digest, artifactType string) (list []ocispec.Descriptor, err error) {
	list = []ocispec.Descriptor{}
	err = r.EachReferrer(ctx, actor, repo, subject, artifactType, "", func(raw []byte) (bool, error) {
		var d ocispec.Descriptor
		err := json.Unmarshal(raw, &d)
		list = append(list, d)
		return true, err
	})
	return list, err
}

// EachReferrer calls fn for each descriptor that [Registry.Referrers] lists,
// after the one of the digest last unless that is "" or not among them, until
// fn returns false. fn gets the descriptor as JSON, which is valid until it
// returns: a list of twenty thousand need not be decoded to be sent.
func (r *Registry) EachReferrer(ctx context.Context, actor access.Actor, repo string, subject digest.Digest, artifactType string, last digest.Digest, fn func(descriptor []byte) (more bool, err error)) error {
	if err := r.mayPull(actor, repo); err != nil {
		return err
	}
	if err := checkDigest(subject); err != nil {
		return err
	}
	var typed []byte // what every descriptor of the type contains
	if artifactType != "" {
		typed = append([]byte(`"artifactType":`), encode(artifactType)...)
	}
	return r.view(ctx, func(rd store.Reader) error {
		rg := under("referrer", repo, string(subject))
		if last != "" {
			// Keys are in the order of the log, newest first: the place of the
			// last one is its own row's.
			var held heldRow
			if ok, err := load(rd, key("held", repo, string(last)), &held); err != nil {
				return err
			} else if ok && held.Subject == subject {
				rg.From = append(key("referrer", repo, string(subject), newest(held.Index), string(last)), 0)
			}
		}
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			if typed != nil {
				if !bytes.Contains(row.Value, typed) {
					continue
				}
				// An annotation may contain the same text.
				var d ocispec.Descriptor
				if err := decode(row, &d); err != nil {
					return err
				}
				if d.ArtifactType != artifactType {
					continue
				}
			}
			if more, err := fn(row.Value); err != nil {
				return fmt.Errorf("row %q is damaged: %w", row.Key, err)
			} else if !more {
				return nil
			}
		}
		return nil
	})
}

// An AsOf names a moment of the past: a time, or a log index. The zero AsOf is
// now.
type AsOf struct {
	Time  time.Time
	Index int64 // counts if Time is zero and it is positive: the state after that leaf
}

func (a AsOf) isNow() bool { return a.Time.IsZero() && a.Index <= 0 }

// includes reports whether a leaf was there at the moment.
func (a AsOf) includes(index int64, at time.Time) bool {
	switch {
	case a.isNow():
		return true
	case !a.Time.IsZero():
		return !at.After(a.Time)
	}
	return index <= a.Index
}

// Resolve returns what a tag named at a moment.
func (r *Registry) Resolve(ctx context.Context, actor access.Actor, repo, tag string, asOf AsOf) (digest.Digest, error) {
	if err := r.mayPull(actor, repo); err != nil {
		return "", err
	}
	if asOf.isNow() || strings.Contains(tag, ":") {
		d, err := r.StatManifest(ctx, actor, repo, tag)
		return d.Digest, err
	}
	moves, err := r.TagHistory(ctx, actor, repo, tag)
	if err != nil {
		return "", err
	}
	var now digest.Digest
	for _, m := range moves {
		if asOf.includes(m.Index, m.At) {
			now = m.To
		}
	}
	if now == "" {
		return "", fmt.Errorf("%w: %s had no tag %s then", ErrManifestUnknown, repo, tag)
	}
	return now, nil
}

// A TagMove is one move of a tag.
type TagMove struct {
	Index    int64
	At       time.Time
	From, To digest.Digest // "" for none: the tag's birth or death
	Actor    string
	Reason   string // "" if none was given or it was erased
}

// TagHistory lists the moves of a tag, the oldest first.
func (r *Registry) TagHistory(ctx context.Context, actor access.Actor, repo, tag string) (moves []TagMove, err error) {
	if err := r.mayPull(actor, repo); err != nil {
		return nil, err
	}
	if err := checkTag(tag); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		for row, err := range rd.Scan(under("tagmove", repo, tag)) {
			if err != nil {
				return err
			}
			var m tagMoveRow
			if err := decode(row, &m); err != nil {
				return err
			}
			index := lastNumber(row.Key)
			var why reasonRow
			if _, err := load(rd, key("reason", number(index)), &why); err != nil {
				return err
			}
			moves = append(moves, TagMove{Index: index, At: m.At, From: m.From, To: m.To, Actor: m.Actor, Reason: why.Text})
		}
		return nil
	})
	return moves, err
}

// A File is a file of a model.
type File struct {
	Name      string        `json:"name"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
}

// A Version is a model version: dense numbers from 1 in each repository.
type Version struct {
	Repository   string
	Number       int
	Digest       digest.Digest
	BornAs       string // the tag it was first pushed under
	BornAt       time.Time
	LogIndex     int64
	Tags         []string // that name it now
	MediaType    string   // "" when it was deleted
	ArtifactType string
	Files        []File // of an index: none, its parts have them
	Annotations  map[string]string
}

// Versions lists the versions of a repository, the newest first.
func (r *Registry) Versions(ctx context.Context, actor access.Actor, repo string) (list []Version, err error) {
	if err := r.mayPull(actor, repo); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		if ok, err := exists(rd, key("repo", repo)); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("%w: %s", ErrNameUnknown, repo))
		}
		tags := map[digest.Digest][]string{}
		for row, err := range rd.Scan(under("tag", repo)) {
			if err != nil {
				return err
			}
			var now tagRow
			if err := decode(row, &now); err != nil {
				return err
			}
			tags[now.Digest] = append(tags[now.Digest], parts(row.Key)[1])
		}
		rg := under("version", repo)
		rg.Reverse = true
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			var v versionRow
			if err := decode(row, &v); err != nil {
				return err
			}
			version := Version{
				Repository: repo, Number: versionNumber(row.Key),
				Digest: v.Digest, BornAs: v.Tag, BornAt: v.At, LogIndex: v.Index, Tags: tags[v.Digest],
			}
			var held heldRow
			if _, err := load(rd, key("held", repo, string(v.Digest)), &held); err != nil {
				return err
			}
			version.MediaType, version.ArtifactType = held.MediaType, held.ArtifactType
			list = append(list, version)
		}
		return nil
	})
	return list, err
}

func versionNumber(k []byte) int {
	return int(lastNumber(append(make([]byte, 4), k[len(k)-4:]...)))
}

// Version returns the version that a tag or digest names, with its files.
func (r *Registry) Version(ctx context.Context, actor access.Actor, repo, reference string) (Version, error) {
	m, err := r.Manifest(ctx, actor, repo, reference)
	if err != nil {
		return Version{}, err
	}
	all, err := r.Versions(ctx, actor, repo)
	if err != nil {
		return Version{}, err
	}
	for _, v := range all {
		if v.Digest != m.Descriptor.Digest {
			continue
		}
		parsed, err := parseManifest(m.Descriptor.MediaType, m.Body, m.Descriptor.Digest.Algorithm())
		if err != nil {
			return Version{}, err
		}
		v.Files, v.Annotations = parsed.files(), parsed.annotations
		return v, nil
	}
	return Version{}, fmt.Errorf("%w: %s is no model version: it is of type %s", ErrUnknown, reference, m.Descriptor.ArtifactType)
}

// OpenBlob returns the bytes of a blob of a repository.
func (r *Registry) OpenBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest) (store.Blob, error) {
	row, err := r.findBlob(ctx, actor, repo, d)
	if err != nil {
		return nil, err
	}
	b, err := r.blobs.Open(ctx, row.Key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("the bytes of blob %s are gone; run 'assay fsck'", d)
	}
	return b, err
}

// StatBlob describes a blob of a repository. It never writes; but whoever may
// push and asks relies on the answer, so it renews the repository's leases in
// memory.
func (r *Registry) StatBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest) (ocispec.Descriptor, error) {
	if !r.wanted(actor, repo, d) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %s has no %s", ErrBlobUnknown, repo, d)
	}
	row, err := r.findBlob(ctx, actor, repo, d)
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: row.Size}, err
}

func (r *Registry) findBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest) (row blobRow, err error) {
	if err := r.mayPull(actor, repo); err != nil {
		return row, err
	}
	if err := checkDigest(d); err != nil {
		return row, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		ok, err := exists(rd, key("linked", repo, string(d)))
		if err == nil && ok {
			ok, err = load(rd, key("blob", string(d)), &row)
		}
		if err == nil && !ok {
			err = fmt.Errorf("%w: %s has no %s", ErrBlobUnknown, repo, d)
		}
		return err
	})
	return row, err
}

// readBlob reads a small blob of a repository whole and checks its digest.
func (r *Registry) readBlob(ctx context.Context, repo string, d digest.Digest, limit int64) ([]byte, error) {
	b, err := r.OpenBlob(ctx, access.System(), repo, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > limit {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, and %d are read", errTooMuch, d, b.Size(), limit)
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, b); err != nil {
		return nil, err
	}
	if got := d.Algorithm().FromBytes(buf.Bytes()); got != d {
		return nil, fmt.Errorf("blob %s is damaged: its bytes are %s", d, got)
	}
	return buf.Bytes(), nil
}
