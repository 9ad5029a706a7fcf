package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/assay-dev/assay/verify/attest"
)

func newPullCommand(g *globals) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "pull REPOSITORY:TAG",
		Short: "Pull the files of a model version",
		Long: `Pull the files of a model version into a folder.

Each file is written under another name first (NAME.partial) and gets its own
only when all of it has arrived and its digest is right, so a file that is there
is whole. Files that are there already are checked and not fetched again.

Large files come in pieces, several at once, each checked on its own against a
list that the registry publishes (an artifact attached to the model). The list
need not be trusted: the pieces together prove the file's digest. Run the
command again after an interruption: it fetches the pieces that are missing, or
that were damaged.`,
		Example: "  assay pull credit/scorer:1.4.0 --dir ./scorer",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return pull(cmd.Context(), g, args[0], dir)
		},
	}
	c.Flags().StringVarP(&dir, "dir", "d", ".", "where to put the files; made if it is not there")
	return c
}

// A pulledFile is one file of what `assay pull` prints.
type pulledFile struct {
	Name    string        `json:"name"`
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Fetched bool          `json:"fetched"`
	Bytes   int64         `json:"fetchedBytes"` // that came over the link
}

func pull(ctx context.Context, g *globals, ref, dir string) error {
	repo, desc, err := g.resolve(ctx, ref)
	if err != nil {
		return err
	}
	raw, err := g.fetch(ctx, repo, desc)
	if err != nil {
		return err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if len(manifest.Layers) == 0 {
		return remedy(fmt.Errorf("%s names no files (its media type is %s)", ref, desc.MediaType), "pull one of its parts by digest; 'assay show %s' lists them", ref)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Names come from a manifest that anybody may have pushed: os.Root keeps
	// every one of them inside dir, symbolic links included.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()

	files := make([]pulledFile, len(manifest.Layers))
	names := map[string]bool{}
	var total int64
	for i, l := range manifest.Layers {
		name := l.Annotations[ocispec.AnnotationTitle]
		if name == "" {
			name = l.Annotations[modelPackFilePath]
		}
		if name == "" {
			name = l.Digest.Encoded()
		}
		if !filepath.IsLocal(filepath.FromSlash(name)) || names[path.Clean(name)] {
			return fmt.Errorf("layer %d of %s is called %q: a name outside the folder, or one used twice; nothing was written", i+1, ref, name)
		}
		names[path.Clean(name)] = true
		files[i] = pulledFile{Name: path.Clean(name), Digest: l.Digest, Size: l.Size}
		total += l.Size
	}
	lists := g.pieces(ctx, repo, desc, manifest.Layers)
	bar := g.progress("pulling", total, true)
	from, slots := newLink(repo), newSlots(pullConnections)
	group, each := errgroup.WithContext(ctx)
	group.SetLimit(pushConcurrency)
	for i, l := range manifest.Layers {
		group.Go(func() error {
			d := &download{link: from, desc: l, name: files[i].Name, list: lists[l.Digest], slots: slots, bar: bar}
			fetched, err := pullFile(each, root, d)
			files[i].Fetched, files[i].Bytes = fetched, d.fetched.Load()
			return g.explain(err, "pulling "+files[i].Name)
		})
	}
	err = group.Wait()
	bar.Stop()
	if err != nil {
		return interrupted(ctx, err)
	}
	return g.print(struct {
		Reference string        `json:"reference"`
		Digest    digest.Digest `json:"digest"`
		Files     []pulledFile  `json:"files"`
	}{ref, desc.Digest, files}, func(w io.Writer) {
		for _, f := range files {
			state := "fetched"
			if !f.Fetched {
				state = "already there"
			}
			fmt.Fprintf(w, "%s  %s  %s (%s)\n", short(f.Digest.String()), byteSize(f.Size), f.Name, state)
		}
		fmt.Fprintf(w, "pulled %s, digest %s\n", ref, desc.Digest)
	})
}

// pieces finds the lists of pieces of a manifest's large files. Without one a
// file comes in one stream; so what cannot be read counts as none.
func (g *globals) pieces(ctx context.Context, repo *remote.Repository, manifest ocispec.Descriptor, layers []ocispec.Descriptor) map[digest.Digest]*attest.Pieces {
	large := map[digest.Digest]int64{}
	for _, l := range layers {
		if l.Size > attest.PieceSize {
			large[l.Digest] = l.Size
		}
	}
	lists := map[digest.Digest]*attest.Pieces{}
	if len(large) == 0 {
		return lists
	}
	var found []ocispec.Descriptor
	err := repo.Referrers(ctx, manifest, attest.PiecesType, func(page []ocispec.Descriptor) error {
		found = append(found, page...)
		return nil
	})
	if err != nil {
		return lists
	}
	for _, ref := range found[:min(len(found), maxPiecesReferrers)] {
		raw, err := g.fetch(ctx, repo, ref)
		if err != nil {
			continue
		}
		var m ocispec.Manifest
		if json.Unmarshal(raw, &m) != nil || m.Subject == nil || m.Subject.Digest != manifest.Digest {
			continue
		}
		for _, l := range m.Layers {
			blob := digest.Digest(l.Annotations[attest.AnnotationBlob])
			if large[blob] == 0 || lists[blob] != nil || l.MediaType != attest.PiecesDocumentType || l.Size > attest.MaxDocument {
				continue
			}
			raw, err := g.fetch(ctx, repo, l)
			if err != nil {
				continue
			}
			var p attest.Pieces
			if attest.Unmarshal(raw, &p) == nil && p.Validate() == nil && p.Blob == blob && p.Size == large[blob] {
				lists[blob] = &p
			}
		}
	}
	return lists
}

// maxPiecesReferrers is how many artifacts are looked at for lists: anybody
// who may push can attach some.
const maxPiecesReferrers = 8

// pullFile fetches one layer to its name, unless a file with its digest is
// there.
func pullFile(ctx context.Context, root *os.Root, d *download) (fetched bool, err error) {
	name := filepath.FromSlash(d.name)
	if f, err := root.Open(name); err == nil {
		got, herr := digest.FromReader(f)
		f.Close()
		if herr == nil && got == d.desc.Digest {
			d.bar.Add(d.desc.Size)
			return false, nil
		}
		return false, remedy(fmt.Errorf("%s is there with other contents", name), "move it away, or pull into another folder with --dir")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return false, err
		}
	}
	partial := name + ".partial"
	if d.file, err = root.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return false, err
	}
	if d.list != nil {
		// Without it the file is written as usual.
		if d.direct, err = root.OpenFile(partial, os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
			defer d.direct.Close()
		} else {
			d.direct = nil
		}
	}
	err = d.run(ctx)
	if e := d.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return false, err
	}
	return true, root.Rename(partial, name)
}
