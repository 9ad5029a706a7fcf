package oms

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify"
)

// An Opener opens a blob that a manifest names, to be read once. What it
// returns has the digest of the descriptor: the opener checks it, or the
// storage it reads from has.
type Opener func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

// Annotations that name the file a layer is.
const (
	modelPackFile = "org.cncf.model.filepath"
	orasUnpack    = "io.deis.oras.content.unpack"
)

// Files lists the files of a model with their SHA-256. Layers that are bare
// files are not opened; open is called for tar layers only.
func Files(ctx context.Context, manifest []byte, open Opener) ([]File, error) {
	return FilesBy(ctx, manifest, WholeFiles, open)
}

// FilesBy lists the files of a model as a signature hashed them. Unless that is
// [WholeFiles], all layers are opened and read.
func FilesBy(ctx context.Context, manifest []byte, h Hashing, open Opener) ([]File, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fail(verify.CodeUnreadable, "", "the manifest does not parse: %v", err)
	}
	var files []File
	for i, l := range m.Layers {
		name := l.Annotations[ocispec.AnnotationTitle]
		if name == "" {
			name = l.Annotations[modelPackFile]
		}
		if isTar(l) {
			inside, err := tarFiles(ctx, l, h, maxResources-len(files), open)
			if err != nil {
				return nil, fmt.Errorf("layer %d: %w", i+1, err)
			}
			files = append(files, inside...)
		} else {
			switch {
			case name == "":
				return nil, fail(CodeUnsupported, "push with names: assay push, oras push", "layer %d has no name", i+1)
			case h != WholeFiles:
				list, err := bareFile(ctx, l, name, h, maxResources-len(files), open)
				if err != nil {
					return nil, fmt.Errorf("layer %d: %w", i+1, err)
				}
				files = append(files, list...)
			case l.Digest.Algorithm() != digest.SHA256:
				return nil, fail(CodeUnsupported, "push with sha256 digests", "%s has a %s digest", name, l.Digest.Algorithm())
			default:
				files = append(files, File{name, l.Digest.Encoded()})
			}
		}
		if len(files) > maxResources {
			return nil, fail(verify.CodeTooLarge, "", "the model has more than %d files", maxResources)
		}
	}
	if len(files) == 0 {
		return nil, fail(CodeUnsupported, "name a model, not an index of some", "the manifest names no files")
	}
	return files, nil
}

// bareFile hashes a layer that is a bare file.
func bareFile(ctx context.Context, l ocispec.Descriptor, name string, h Hashing, room int, open Opener) ([]File, error) {
	rc, err := open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	list, err := h.sum(name, rc, room)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return list, nil
}

// isTar reports whether a layer is an archive of files rather than one. ORAS
// gives bare files the media type of tar layers, and archives an annotation.
func isTar(l ocispec.Descriptor) bool {
	if l.Annotations[orasUnpack] == "true" {
		return true
	}
	mediaType, _, _ := strings.Cut(l.MediaType, "+")
	if mediaType == ocispec.MediaTypeImageLayer && l.MediaType == mediaType && l.Annotations[ocispec.AnnotationTitle] != "" {
		return false
	}
	return strings.HasSuffix(mediaType, ".tar") || strings.HasSuffix(l.MediaType, ".tar.gzip") || strings.Contains(l.MediaType, "rootfs.diff.tar")
}

// tarFiles hashes the files in a tar layer while it streams by.
func tarFiles(ctx context.Context, l ocispec.Descriptor, h Hashing, room int, open Opener) ([]File, error) {
	rc, err := open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	buffered := bufio.NewReaderSize(rc, 1<<16)
	var r io.Reader = buffered
	switch magic, _ := buffered.Peek(4); {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		if r, err = gzip.NewReader(buffered); err != nil {
			return nil, err
		}
	case len(magic) == 4 && string(magic) == "\x28\xb5\x2f\xfd":
		return nil, fail(CodeUnsupported, "push it as a bare file, or as tar or gzip", "a layer is compressed with zstd")
	}
	tr := tar.NewReader(r)
	var files []File
	for {
		head, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch head.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		default:
			// A link stands for content that has another name.
			return nil, fail(CodeUnsupported, "pack files, and no links", "%s is neither a file nor a folder", head.Name)
		}
		list, err := h.sum(path.Clean(strings.TrimPrefix(head.Name, "./")), tr, room-len(files))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", head.Name, err)
		}
		if files = append(files, list...); len(files) > room {
			return nil, fail(verify.CodeTooLarge, "", "the model has more than %d files", maxResources)
		}
	}
}
