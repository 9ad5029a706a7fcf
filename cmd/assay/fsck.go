package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/registry"
)

func newFsckCommand(g *globals) *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Check everything a stopped server keeps",
		Long: `Check everything in a data folder: every row against the others, every blob
against its digest, every manifest against what it names, and the whole log
against its own Merkle tree. The server must not be running.

The exit status is 0 if nothing is wrong and 3 if something is; each finding
says where it is and what to do.`,
		Example: "  assay fsck --data /var/lib/assay",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := os.Stat(filepath.Join(data, "db")); err != nil {
				return remedy(fmt.Errorf("opening the data folder: %w", err), "name the folder that 'assay serve --data' used")
			}
			return fsck(cmd, g, data)
		},
	}
	c.Flags().StringVar(&data, "data", "./assay-data", "the folder that the server keeps everything in")
	return c
}

func fsck(cmd *cobra.Command, g *globals, data string) error {
	s, err := openData(cmd.Context(), data, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.close()
	report, err := s.registry.Fsck(cmd.Context())
	if err != nil {
		return err
	}
	if err := g.print(report, func(w io.Writer) { printFsck(w, report) }); err != nil {
		return err
	}
	if len(report.Findings) > 0 {
		return verdict(exitDenied)
	}
	return nil
}

func printFsck(w io.Writer, r registry.FsckReport) {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\n  where: %s\n  what to do: %s\n", f.What, f.Where, f.Remedy)
	}
	if r.Unnamed > 0 {
		fmt.Fprintf(w, "%d unfinished uploads (%s) that the server takes back when it runs\n", r.Unnamed, byteSize(r.UnnamedBytes))
	}
	fmt.Fprintf(w, "checked %d repositories, %d manifests, %d blobs (%s), %d log leaves: %d findings\n",
		r.Repositories, r.Manifests, r.Blobs, byteSize(r.BlobBytes), r.Leaves, len(r.Findings))
}
