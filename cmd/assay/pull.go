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
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

func newPullCommand(g *globals) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "pull REPOSITORY:TAG",
		Short: "Pull the files of a model version",
		Long: `Pull the files of a model version into a folder.

Each file is written under another name first and gets its own only when all of
it has arrived and its digest is right, so a file that is there is whole. Files
that are there already are checked and not fetched again: run the command again
after an interruption.`,
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
	bar := g.progress("pulling", total, true)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pushConcurrency)
	for i, l := range manifest.Layers {
		group.Go(func() error {
			fetched, err := pullFile(ctx, repo, root, files[i].Name, l, bar)
			files[i].Fetched = fetched
			return g.explain(err, "pulling "+files[i].Name)
		})
	}
	err = group.Wait()
	bar.Stop()
	if err != nil {
		return err
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

// pullFile fetches one layer to name, unless a file with its digest is there.
func pullFile(ctx context.Context, repo *remote.Repository, root *os.Root, name string, desc ocispec.Descriptor, bar *progress) (fetched bool, err error) {
	name = filepath.FromSlash(name)
	if f, err := root.Open(name); err == nil {
		got, herr := digest.FromReader(f)
		f.Close()
		if herr == nil && got == desc.Digest {
			bar.Add(desc.Size)
			return false, nil
		}
		return false, remedy(fmt.Errorf("%s is there with other contents", name), "move it away, or pull into another folder with --dir")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if d := filepath.Dir(name); d != "." {
		if err := root.MkdirAll(d, 0o755); err != nil {
			return false, err
		}
	}
	rc, err := repo.Blobs().Fetch(ctx, desc)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	partial := name + ".partial"
	f, err := root.Create(partial)
	if err != nil {
		return false, err
	}
	defer func() {
		f.Close()
		if err != nil {
			root.Remove(partial)
		}
	}()
	verified := content.NewVerifyReader(rc, desc)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, barWriter{bar})}, verified, make([]byte, 1<<20)); err != nil {
		return false, err
	}
	if err := verified.Verify(); err != nil {
		return false, fmt.Errorf("%s: what arrived is not %s: %w", name, desc.Digest, err)
	}
	if err := f.Close(); err != nil {
		return false, err
	}
	return true, root.Rename(partial, name)
}
