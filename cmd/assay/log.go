package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/tlog"
)

func newLogCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "log",
		Short: "Read the transparency log, and check proofs without the server",
		Long: `Read the log of every change and decision, and check proofs without the server:
keep the checkpoint and the key, and nobody can take a leaf out unnoticed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newLogCheckpointCommand(g), newLogLeafCommand(g), newLogProveCommand(g), newLogVerifyCommand(g))
	return c
}

func newLogCheckpointCommand(g *globals) *cobra.Command {
	var key bool
	c := &cobra.Command{
		Use:     "checkpoint",
		Short:   "Print the signed state of the log",
		Long:    "Print the signed state of the log (a C2SP checkpoint); with --key the key that verifies it.",
		Example: "  assay log checkpoint\n  assay log checkpoint --key > log.vkey",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.GetCheckpointResponse
			if err := g.api(cmd.Context(), "GET", "log/checkpoint", nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				if key {
					fmt.Fprintln(w, answer.VerifierKey)
					return
				}
				io.WriteString(w, answer.Checkpoint)
			})
		},
	}
	c.Flags().BoolVar(&key, "key", false, "the verifier key instead")
	return c
}

func newLogLeafCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "about DIGEST",
		Short:   "List all leaves that name a digest",
		Long:    "List all leaves of the log that name a digest: a model, a statement, an environment document.",
		Example: "  assay log about sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := g.leavesAbout(cmd, args[0])
			if err != nil {
				return err
			}
			return g.printProto(answer, func(w io.Writer) {
				rows := [][]string{{"LEAF", "AT", "WHAT", "WHERE", "OUTCOME"}}
				for _, l := range answer.Leaves {
					e := l.Event
					what := e.Kind
					if e.Artifact != "" && e.Version == 0 {
						what += " " + e.Artifact
					}
					if e.Version > 0 {
						what += fmt.Sprintf(" (version %d)", e.Version)
					}
					where := e.Repository
					for _, t := range e.Tags {
						where += " :" + t.Tag
					}
					rows = append(rows, []string{fmt.Sprint(l.Index), e.At.AsTime().Format(time.RFC3339), what, strings.TrimSpace(where + " " + e.Environment), e.Outcome})
				}
				table(w, rows)
			})
		},
	}
}

func (g *globals) leavesAbout(cmd *cobra.Command, d string) (*pb.ListLeavesResponse, error) {
	if digest.Digest(d).Validate() != nil {
		return nil, usagef("%q is no digest: write sha256:…", d)
	}
	all := &pb.ListLeavesResponse{}
	q := url.Values{"about": {d}}
	for {
		var page pb.ListLeavesResponse
		if err := g.api(cmd.Context(), "GET", "log/leaves", q, nil, &page); err != nil {
			return nil, err
		}
		all.Leaves = append(all.Leaves, page.Leaves...)
		if page.NextPageToken == "" {
			return all, nil
		}
		q.Set("page_token", page.NextPageToken)
	}
}

func newLogProveCommand(g *globals) *cobra.Command {
	var out string
	var index int64
	c := &cobra.Command{
		Use:   "prove [DIGEST]",
		Short: "Fetch a proof that something is in the log",
		Long: `Fetch a proof that a leaf is in the log: the one that first names a digest, or
the one with --index. The proof (a C2SP tlog-proof) holds the leaf, the path and
a signed checkpoint: 'assay log verify' needs nothing else but the log's key.`,
		Example: "  assay log prove sha256:… --out certificate.proof",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				answer, err := g.leavesAbout(cmd, args[0])
				if err != nil {
					return err
				}
				if len(answer.Leaves) == 0 {
					return remedy(fmt.Errorf("no leaf of the log names %s", args[0]), "is it the digest of a manifest? 'assay show REFERENCE' lists some")
				}
				index = answer.Leaves[0].Index
			} else if index < 0 {
				return usagef("name a digest, or a leaf with --index")
			}
			var answer pb.GetInclusionProofResponse
			if err := g.api(cmd.Context(), "GET", fmt.Sprintf("log/leaves/%d/proof", index), nil, nil, &answer); err != nil {
				return err
			}
			if out == "" {
				return g.printProto(&answer, func(w io.Writer) { io.WriteString(w, answer.Proof) })
			}
			if err := os.WriteFile(out, []byte(answer.Proof), 0o644); err != nil {
				return err
			}
			g.note("wrote the proof of leaf %d to %s", index, out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "the file to write (default: standard output)")
	c.Flags().Int64Var(&index, "index", -1, "the leaf")
	return c
}

func newLogVerifyCommand(g *globals) *cobra.Command {
	var keyFile, about string
	c := &cobra.Command{
		Use:   "verify PROOF",
		Short: "Check a proof without the server",
		Long: `Check that the leaf in a proof is in the log whose key is given. No network is
used. With --about the leaf must name that digest too.

The exit status is 0 if it is, 3 if not.`,
		Example: "  assay log verify certificate.proof --key log.vkey --about sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return remedy(err, "fetch one with 'assay log prove'")
			}
			vkey, err := os.ReadFile(keyFile)
			if err != nil {
				return remedy(err, "get the log's key once, from somebody you trust: assay log checkpoint --key")
			}
			type result struct {
				Verified bool            `json:"verified"`
				Reason   string          `json:"reason,omitempty"`
				Index    int64           `json:"index"`
				TreeSize int64           `json:"treeSize"`
				Leaf     *registry.Event `json:"leaf,omitempty"`
			}
			var r result
			p, err := tlog.Verify(raw, strings.TrimSpace(string(vkey)))
			if err == nil {
				var e registry.Event
				if e, err = registry.ParseLeaf(p.Leaf); err == nil {
					r = result{Verified: true, Index: p.Index, TreeSize: p.Tree.N, Leaf: &e}
					if about != "" && !names(e, digest.Digest(about)) {
						err = fmt.Errorf("leaf %d does not name %s", p.Index, about)
					}
				}
			}
			if err != nil {
				r.Verified, r.Reason = false, err.Error()
			}
			if perr := g.print(r, func(w io.Writer) {
				if !r.Verified {
					fmt.Fprintf(w, "NOT VERIFIED: %s\n", r.Reason)
					return
				}
				fmt.Fprintf(w, "VERIFIED: leaf %d of %d: %s at %s in %s\n", r.Index, r.TreeSize, r.Leaf.Kind, r.Leaf.At.Format(time.RFC3339), r.Leaf.Repository)
			}); perr != nil {
				return perr
			}
			if !r.Verified {
				return verdict(exitDenied)
			}
			return nil
		},
	}
	c.Flags().StringVar(&keyFile, "key", "log.vkey", "the file with the log's verifier key")
	c.Flags().StringVar(&about, "about", "", "a digest that the leaf must name")
	return c
}

func names(e registry.Event, d digest.Digest) bool {
	for _, list := range [][]digest.Digest{e.Digests, e.Subjects} {
		for _, x := range list {
			if x == d {
				return true
			}
		}
	}
	return false
}
