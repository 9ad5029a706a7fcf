package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newBackupCommand(g *globals) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "backup",
		Short: "Back up a running server, into a folder or an archive",
		Long: `Back up a running server, with all that it keeps and the keys that it signs its
log with: keep the backup as safe as the server.

Into a folder a backup brings only the blobs that are not there yet: each is
kept once, beside a snapshot of everything else for each backup. A name that
ends in .tar, or - for the standard output, takes a whole backup as an archive.`,
		Example: "  assay backup --to /backup/assay\n  assay backup --to assay-2026-03-01.tar",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result := struct {
				To    string `json:"to"`
				Files int    `json:"files"`
				Bytes int64  `json:"bytes"`
			}{To: to}
			var err error
			switch {
			case to == "":
				return usagef("where to? give --to FOLDER, --to FILE.tar, or --to - for the standard output")
			case to == "-":
				return g.fetchBackup(cmd.Context(), nil, func(r io.Reader) error {
					_, err := io.Copy(g.out, r)
					return err
				})
			case strings.HasSuffix(to, ".tar"):
				result.Bytes, err = g.backupFile(cmd.Context(), to)
				result.Files = 1
			default:
				result.To, result.Files, result.Bytes, err = g.backupFolder(cmd.Context(), to)
			}
			if err != nil {
				return err
			}
			return g.print(result, func(w io.Writer) {
				fmt.Fprintf(w, "backed up to %s: %d files, %s\n", result.To, result.Files, byteSize(result.Bytes))
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "the folder or the .tar file to write; - is the standard output")
	return c
}

// fetchBackup asks the server for a backup without the blobs that are here
// already, and hands it over as it comes.
func (g *globals) fetchBackup(ctx context.Context, have io.Reader, take func(io.Reader) error) error {
	u, err := g.serverURL()
	if err != nil {
		return err
	}
	u.Path = "/api/v1/backup"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), have)
	if err != nil {
		return err
	}
	if err := g.authorize(req); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return g.explain(err, "asking for a backup")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return err
		}
		return g.refusal(resp, raw)
	}
	bar := g.progress("backup", 0, true)
	defer bar.Stop()
	if err := take(io.TeeReader(resp.Body, counted{bar})); err != nil {
		return remedy(fmt.Errorf("the backup broke off: %w", err), "what came is not a backup; the server's log says more")
	}
	return nil
}

// counted adds what is written to a progress.
type counted struct{ *progress }

func (c counted) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// backupFile writes an archive that has its name only once it is whole.
func (g *globals) backupFile(ctx context.Context, path string) (n int64, err error) {
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = g.fetchBackup(ctx, nil, func(r io.Reader) (err error) {
		n, err = io.Copy(f, r)
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		os.Remove(partial)
		return 0, err
	}
	if err := os.Rename(partial, path); err != nil {
		return 0, err
	}
	return n, syncFolder(filepath.Dir(path))
}

// A backup folder holds blobs/ALG/HEX and manifests/ALG/HEX, each once, and
// snapshots/TIME with the other files of each backup.
var backupContent = regexp.MustCompile(`^(blobs|manifests)/(sha256|sha512)/[0-9a-f]{64,128}$`)

// backupFolder adds a snapshot to a folder.
func (g *globals) backupFolder(ctx context.Context, dir string) (snapshot string, files int, n int64, err error) {
	var have bytes.Buffer
	for _, kind := range []string{"blobs", "manifests"} {
		for _, alg := range []string{"sha256", "sha512"} {
			entries, err := os.ReadDir(filepath.Join(dir, kind, alg))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", 0, 0, err
			}
			for _, e := range entries {
				if filepath.Ext(e.Name()) == "" {
					fmt.Fprintf(&have, "%s:%s\n", alg, e.Name())
				}
			}
		}
	}
	snapshot = filepath.Join(dir, "snapshots", time.Now().UTC().Format("20060102T150405.000Z"))
	partial := snapshot + ".partial"
	err = g.fetchBackup(ctx, &have, func(r io.Reader) error {
		whole := false
		t := tar.NewReader(r)
		for {
			h, err := t.Next()
			if err == io.EOF && whole {
				return nil
			}
			if err == io.EOF {
				return io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
			// Names are the server's: none may lead out of the folder.
			path := filepath.Join(partial, filepath.FromSlash(h.Name))
			if backupContent.MatchString(h.Name) {
				path = filepath.Join(dir, filepath.FromSlash(h.Name))
			} else if !filepath.IsLocal(h.Name) {
				return fmt.Errorf("the server sent a file called %q", h.Name)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
			if err := writeWhole(path, t); err != nil {
				return err
			}
			files, n = files+1, n+h.Size
			whole = h.Name == "end.json"
		}
	})
	if err != nil {
		os.RemoveAll(partial)
		return "", 0, 0, err
	}
	if err := os.Rename(partial, snapshot); err != nil {
		return "", 0, 0, err
	}
	return snapshot, files, n, syncFolder(filepath.Dir(snapshot))
}

// writeWhole writes a file that has its name only once it is durable.
func writeWhole(path string, from io.Reader) error {
	f, err := os.OpenFile(path+".partial", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".partial", path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openBackup reads a backup as the archive it is: a file, the standard input,
// or a folder, of which the newest snapshot counts unless one is named.
func (g *globals) openBackup(from string) (io.ReadCloser, error) {
	if from == "-" {
		return io.NopCloser(g.in), nil
	}
	info, err := os.Stat(from)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		f, err := os.Open(from)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{bufio.NewReaderSize(f, 1<<20), f}, nil
	}
	dir, snapshot := from, ""
	if filepath.Base(filepath.Dir(filepath.Clean(from))) == "snapshots" {
		dir, snapshot = filepath.Dir(filepath.Dir(filepath.Clean(from))), from
	} else {
		all, err := filepath.Glob(filepath.Join(dir, "snapshots", "*Z"))
		if err != nil || len(all) == 0 {
			return nil, remedy(fmt.Errorf("%s holds no backup", dir), "name a folder or .tar file that 'assay backup' has written")
		}
		snapshot = all[len(all)-1] // names sort by time
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(packBackup(w, dir, snapshot)) }()
	return r, nil
}

// packBackup writes the archive that a folder holds in pieces, in the order in
// which it came: its head first and its end last. Of what the folder holds for
// several snapshots it takes what this one names.
func packBackup(w io.Writer, dir, snapshot string) error {
	t := tar.NewWriter(w)
	add := func(root, name string) error {
		f, err := os.Open(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: info.Size()}); err != nil {
			return err
		}
		_, err = io.Copy(t, f)
		return err
	}
	walk := func(folder string, each func(name string) error) error {
		entries, err := os.ReadDir(filepath.Join(snapshot, folder)) // sorted
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			if err == nil {
				err = each(folder + "/" + e.Name())
			}
		}
		return err
	}
	here := func(name string) error { return add(snapshot, name) }
	content := func(list string) error {
		f, err := os.Open(filepath.Join(snapshot, filepath.FromSlash(list)))
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if !backupContent.MatchString(lines.Text()) {
				return fmt.Errorf("%s names %.100q", f.Name(), lines.Text())
			}
			if err := add(dir, lines.Text()); err != nil {
				return err
			}
		}
		return lines.Err()
	}
	for _, step := range []func() error{
		func() error { return add(snapshot, "assay-backup.json") },
		func() error { return walk("identity", here) },
		func() error { return walk("content", content) },
		func() error { return walk("rows", here) },
		func() error { return add(snapshot, "end.json") },
		t.Close,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
