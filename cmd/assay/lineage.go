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
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

func newLineageCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "lineage",
		Short: "Record and show where models come from",
		Long:  "Record and show where models come from: parents, datasets with digests, code revisions.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newLineageRecordCommand(g), newLineageShowCommand(g))
	return c
}

func newLineageRecordCommand(g *globals) *cobra.Command {
	var with signing
	var relation, run string
	var parents, datasets, evaluated, code []string
	c := &cobra.Command{
		Use:   "record REFERENCE",
		Short: "Sign a statement of where a model version comes from",
		Long: `Sign a statement of where a model version comes from, and attach it.

  --parent     an older version or base model, in the same repository or another
  --dataset    NAME=FILE: the file is hashed; or NAME=sha256:… if it is elsewhere
  --code       URL@REVISION`,
		Example: `  assay lineage record --key keys/provenance.key --parent credit/scorer:1.3.0 \
      --dataset train.csv=./train.csv --code https://git.example.com/credit@4f2c1d9 credit/scorer:1.4.0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := with.signer(cmd.Context())
			if err != nil {
				return err
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			l := attest.Lineage{Parents: []attest.Parent{}, Datasets: []attest.Dataset{}, Code: []attest.Code{}, RecordedAt: time.Now().UTC().Truncate(time.Second)}
			for _, p := range parents {
				home, parent, err := g.resolve(cmd.Context(), p)
				if err != nil {
					return fmt.Errorf("parent: %w", err)
				}
				if parent.Digest == desc.Digest {
					return usagef("%s is its own parent", p)
				}
				one := attest.Parent{Relation: attest.Relation(relation), Repository: home.Reference.Repository, Resource: attest.Resource{Digest: attest.Digests(parent.Digest), MediaType: parent.MediaType}}
				if !strings.Contains(home.Reference.Reference, ":") {
					one.Version = home.Reference.Reference
				}
				l.Parents = append(l.Parents, one)
			}
			for relation, list := range map[attest.Relation][]string{attest.TrainedOn: datasets, attest.EvaluatedOn: evaluated} {
				for _, d := range list {
					one, err := dataset(d)
					if err != nil {
						return err
					}
					one.Relation = relation
					l.Datasets = append(l.Datasets, one)
				}
			}
			for _, c := range code {
				i := strings.LastIndex(c, "@")
				if i < 0 {
					return usagef("--code %q: write URL@REVISION", c)
				}
				l.Code = append(l.Code, attest.Code{Relation: attest.BuiltFrom, Revision: c[i+1:], Resource: attest.Resource{URI: c[:i]}})
			}
			if run != "" {
				l.TrainingRun = &attest.TrainingRun{ID: run}
			}
			statement, err := attest.NewStatement(desc.Digest, l)
			if err != nil {
				return err
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateLineage)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateLineage, ref.Descriptor.Digest}, "lineage recorded for")
		},
	}
	f := c.Flags()
	with.addFlags(f, verify.Provenance)
	f.StringArrayVar(&parents, "parent", nil, "a model this one came from; may be given more than once")
	f.StringVar(&relation, "relation", string(attest.RevisionOf), "what the parents are: revisionOf, finetunedFrom, quantizedFrom, mergedFrom or distilledFrom")
	f.StringArrayVar(&datasets, "dataset", nil, "data it was trained on")
	f.StringArrayVar(&evaluated, "evaluated-on", nil, "data it was measured on")
	f.StringArrayVar(&code, "code", nil, "the code that made it")
	f.StringVar(&run, "run", "", "an id of the training run")
	return c
}

// dataset reads NAME=FILE or NAME=DIGEST.
func dataset(s string) (attest.Dataset, error) {
	name, what, ok := strings.Cut(s, "=")
	if !ok || name == "" || what == "" {
		return attest.Dataset{}, usagef("dataset %q: write NAME=FILE or NAME=sha256:…", s)
	}
	if d := digest.Digest(what); d.Validate() == nil {
		return attest.Dataset{How: "given as a digest", Resource: attest.Resource{Name: name, Digest: attest.Digests(d)}}, nil
	}
	f, err := os.Open(what)
	if err != nil {
		return attest.Dataset{}, remedy(err, "name the file, or give its digest: %s=sha256:…", name)
	}
	defer f.Close()
	d, err := digest.FromReader(f)
	return attest.Dataset{How: "sha256 of the file", Resource: attest.Resource{Name: name, Digest: attest.Digests(d)}}, err
}

func newLineageShowCommand(g *globals) *cobra.Command {
	var down bool
	var depth int
	c := &cobra.Command{
		Use:   "show REFERENCE",
		Short: "Show where a model version comes from, or what came from it",
		Long: `Show where a model version comes from, as the server knows it, or with
--descendants what came from it. Each line says who stated it and whether the
trust file believes them.`,
		Example: `  assay lineage show credit/scorer:1.4.0
  assay lineage show --descendants credit/scorer:1.3.0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			direction := pb.Direction_DIRECTION_UPSTREAM
			if down {
				direction = pb.Direction_DIRECTION_DOWNSTREAM
			}
			var answer pb.GetLineageResponse
			err = g.api(cmd.Context(), "GET", "lineage", url.Values{
				"repository": {repo.Reference.Repository}, "reference": {string(desc.Digest)},
				"direction": {direction.String()}, "depth": {fmt.Sprint(depth)},
			}, nil, &answer)
			if err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { printLineage(w, &answer, down) })
		},
	}
	c.Flags().BoolVar(&down, "descendants", false, "what came from it")
	c.Flags().IntVar(&depth, "depth", 0, "how many steps; 0 is all")
	return c
}

// printLineage prints a graph as a tree from its root.
func printLineage(w io.Writer, a *pb.GetLineageResponse, down bool) {
	nodes := map[string]*pb.Node{}
	for _, n := range a.Nodes {
		nodes[n.Id] = n
	}
	name := func(id string) string {
		n := nodes[id]
		if n == nil {
			return short(id)
		}
		switch n.Kind {
		case pb.NodeKind_NODE_KIND_MODEL:
			s := n.Repository
			if len(n.Tags) > 0 {
				s += ":" + strings.Join(n.Tags, ",")
			}
			return fmt.Sprintf("model %s (%s)", s, short(n.Digest))
		case pb.NodeKind_NODE_KIND_DATASET:
			return fmt.Sprintf("dataset %s (%s)", n.Name, short(n.Digest))
		case pb.NodeKind_NODE_KIND_CODE:
			return "code " + n.Name
		}
		return "training run " + n.Name
	}
	seen := map[string]bool{}
	var walk func(id, indent string)
	walk = func(id, indent string) {
		if seen[id] {
			return
		}
		seen[id] = true
		for _, e := range a.Edges {
			near, far := e.From, e.To
			if down {
				near, far = far, near
			}
			if near != id {
				continue
			}
			proof := fmt.Sprintf("verified, by %s, log leaf %d", e.Identity, e.LogIndex)
			if e.Tier != pb.Tier_TIER_VERIFIED {
				proof = fmt.Sprintf("signed and NOT believed: %s", e.Why)
			}
			fmt.Fprintf(w, "%s  %s %s  [%s]\n", indent, e.Relation, name(far), proof)
			walk(far, indent+"    ")
		}
	}
	fmt.Fprintln(w, name(a.Root))
	walk(a.Root, "")
	if len(a.Edges) == 0 {
		fmt.Fprintln(w, "  nothing is recorded")
	}
	if a.Truncated {
		fmt.Fprintln(w, "  … and further")
	}
}
