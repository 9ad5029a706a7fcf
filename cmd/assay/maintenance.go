package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
)

func newGCCommand(g *globals) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "gc",
		Short: "Take back what nothing needs, on a running server",
		Long: `Take back what nothing needs, on a running server: blobs that no manifest names
and that nobody has pushed or asked for during a day, uploads that rested as
long, and bytes that a crash left. Manifests and versions are never collected.
It also looks for stored content whose bytes are gone; the next push heals it.

The server does this by itself every hour; pushes go on meanwhile.`,
		Example: "  assay gc --dry-run\n  assay gc",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var a pb.CollectResponse
			if err := g.apiLong(cmd.Context(), "POST", "maintenance/collect", &pb.CollectRequest{DryRun: dryRun}, &a); err != nil {
				return err
			}
			if err := g.printProto(&a, func(w io.Writer) { printCollection(w, &a) }); err != nil {
				return err
			}
			if len(a.Missing) > 0 {
				return verdict(exitDenied)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, and say what would be done")
	return c
}

func printCollection(w io.Writer, a *pb.CollectResponse) {
	if len(a.Blobs) > 0 {
		rows := [][]string{{"REPOSITORY", "DIGEST", "SIZE", "SINCE"}}
		for _, b := range a.Blobs {
			rows = append(rows, []string{b.Repository, b.Digest, byteSize(b.Size), b.Since.AsTime().Format(time.RFC3339)})
		}
		table(w, rows)
	}
	for _, d := range a.Missing {
		fmt.Fprintf(w, "the bytes of %s are gone: push it again\n", d)
	}
	verb := "collected"
	if a.DryRun {
		verb = "would collect"
	}
	more := ""
	if a.MoreBlobs {
		more = " and more"
	}
	fmt.Fprintf(w, "%s %d blobs%s (%s freed), %d uploads, %d leftovers (%s)\n",
		verb, len(a.Blobs), more, byteSize(a.FreedBytes), a.Uploads, a.Unnamed, byteSize(a.UnnamedBytes))
}

// scrubPiece is how much is read between two looks at the clock.
const scrubPiece = 64 << 20

// scrubSteps is how finely the progress is shown.
const scrubSteps = 1 << 10

// scrubbed tells from a place in the order of digests how far that is: digests
// are spread evenly.
func scrubbed(place string) int64 {
	family, d, _ := strings.Cut(place, "/")
	switch {
	case place == "":
		return scrubSteps
	case family != "blob":
		return scrubSteps - 1 // manifests are small
	}
	_, hex, _ := strings.Cut(d, ":")
	n, err := strconv.ParseInt(hex[:min(3, len(hex))], 16, 64)
	if err != nil {
		return 0
	}
	return n * (scrubSteps - 1) / (1 << 12)
}

func newScrubCommand(g *globals) *cobra.Command {
	var rate int64
	c := &cobra.Command{
		Use:   "scrub",
		Short: "Read everything stored again and compare it with its digests",
		Long: `Read everything a running server stores again and compare it with its digests.
Damaged content is set aside: readers are told that it is not there, and the
next push of the digest heals it.

The exit status is 0 if nothing is damaged and 3 if something is.`,
		Example: "  assay scrub\n  assay scrub --rate 100",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rate < 0 {
				return usagef("--rate %d: give MiB a second, or 0 for as fast as the disk", rate)
			}
			total := &pb.ScrubResponse{}
			bar := g.progress("scrub", scrubSteps, false)
			start, done := time.Now(), int64(0)
			for from := ""; ; {
				var a pb.ScrubResponse
				if err := g.apiLong(cmd.Context(), "POST", "maintenance/scrub", &pb.ScrubRequest{From: from, BudgetBytes: scrubPiece}, &a); err != nil {
					bar.Stop()
					return err
				}
				total.Checked += a.Checked
				total.Bytes += a.Bytes
				total.Damaged = append(total.Damaged, a.Damaged...)
				from = a.Next
				now := scrubbed(from)
				bar.Add(now - done)
				if done = now; from == "" {
					break
				}
				if rate > 0 {
					due := start.Add(time.Duration(float64(total.Bytes) / float64(rate<<20) * float64(time.Second)))
					select {
					case <-time.After(time.Until(due)):
					case <-cmd.Context().Done():
						bar.Stop()
						return cmd.Context().Err()
					}
				}
			}
			bar.Stop()
			if err := g.printProto(total, func(w io.Writer) {
				for _, d := range total.Damaged {
					fmt.Fprintf(w, "damaged, and set aside: %s; push it again\n", d)
				}
				fmt.Fprintf(w, "read %d blobs and manifests (%s): %d damaged\n", total.Checked, byteSize(total.Bytes), len(total.Damaged))
			}); err != nil {
				return err
			}
			if len(total.Damaged) > 0 {
				return verdict(exitDenied)
			}
			return nil
		},
	}
	c.Flags().Int64Var(&rate, "rate", 0, "MiB a second to read at most; 0 is as fast as the disk")
	return c
}
