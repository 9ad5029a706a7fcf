package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	blobs "github.com/assay-dev/assay/store/fs"
)

func newRestoreCommand(g *globals) *cobra.Command {
	var from, data string
	c := &cobra.Command{
		Use:   "restore",
		Short: "Restore a backup into an empty data folder",
		Long: `Restore a backup into an empty data folder, and check all of it: every blob
against its digest, every row against the others, and the log against the
checkpoint that was signed when the backup was made. Only then can a server be
started on it.

A folder of backups gives its newest one; name FOLDER/snapshots/TIME for
another.`,
		Example: "  assay restore --from /backup/assay --data /var/lib/assay\n  assay restore --from assay-2026-03-01.tar",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return usagef("from where? give --from with what 'assay backup' has written")
			}
			if entries, err := os.ReadDir(data); err == nil && len(entries) > 0 {
				return remedy(fmt.Errorf("%s is not empty", data), "restore into a new folder with --data; it is not written over what is there")
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return g.restore(cmd, from, data)
		},
	}
	c.Flags().StringVar(&from, "from", "", "a folder or .tar file that 'assay backup' has written; - is the standard input")
	c.Flags().StringVar(&data, "data", "./assay-data", "the data folder to make")
	return c
}

func (g *globals) restore(cmd *cobra.Command, from, data string) error {
	archive, err := g.openBackup(from)
	if err != nil {
		return err
	}
	defer archive.Close()
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	space, err := store.NewSpace(data, 0)
	if err != nil {
		return err
	}
	db, err := badger.Open(filepath.Join(data, "db"), badger.Options{Space: space})
	if err != nil {
		return err
	}
	defer db.Close()
	b, err := blobs.Open(filepath.Join(data, "blobs"), blobs.Options{Space: space})
	if err != nil {
		return err
	}
	defer b.Close()
	identity := filepath.Join(data, "identity")
	head, tail, err := registry.Restore(cmd.Context(), archive, registry.RestoreOptions{DB: db, Blobs: b, Identity: identity})
	if err != nil {
		return remedy(err, "%s is of no use: remove it before the next try", data)
	}
	id, err := registry.LoadIdentity(identity)
	if err != nil {
		return err
	}
	r, err := registry.Open(cmd.Context(), registry.Options{DB: db, Blobs: b, Identity: id, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer r.Close()
	report, err := r.Fsck(cmd.Context())
	if err != nil {
		return err
	}
	note, err := r.Checkpoint(cmd.Context(), access.System())
	if err != nil {
		return err
	}
	result := struct {
		From       string              `json:"from"`
		Data       string              `json:"data"`
		Created    string              `json:"created"`
		Rows       int                 `json:"rows"`
		Blobs      int                 `json:"blobs"`
		BlobBytes  int64               `json:"blobBytes"`
		Checkpoint string              `json:"checkpoint"`
		Fsck       registry.FsckReport `json:"fsck"`
	}{from, data, head.Created.Format("2006-01-02T15:04:05Z07:00"), tail.Rows, tail.Blobs, tail.BlobBytes, string(note), report}
	if err := g.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "restored the backup of %s: %d rows, %d blobs (%s), log of %d leaves as signed\n",
			result.Created, tail.Rows, tail.Blobs, byteSize(tail.BlobBytes), report.Leaves)
		printFsck(w, report)
		if len(report.Findings) == 0 {
			fmt.Fprintf(w, "next: assay serve --data %s\n", data)
		}
	}); err != nil {
		return err
	}
	if !bytes.Equal(note, []byte(head.Checkpoint)) {
		return fmt.Errorf("the log that was restored is not the one that was backed up")
	}
	if len(report.Findings) > 0 {
		return verdict(exitDenied)
	}
	return nil
}
