package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

func newVersionsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "versions [REPOSITORY]",
		Short:   "List the versions of a model, or the repositories",
		Long:    "List the numbered versions of a repository, the newest first; without one, the repositories.",
		Example: "  assay versions credit/scorer",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listRepositories(cmd, g)
			}
			list, err := g.versions(cmd.Context(), args[0])
			if err != nil {
				return remedy(err, "'assay versions' lists the repositories")
			}
			all := &pb.ListVersionsResponse{Versions: list}
			return g.printProto(all, func(w io.Writer) {
				rows := [][]string{{"VERSION", "TAGS", "DIGEST", "BORN", "LEAF"}}
				for _, v := range all.Versions {
					rows = append(rows, []string{fmt.Sprint(v.Number), strings.Join(v.Tags, ","), short(v.Digest), v.BornAt.AsTime().Format("2006-01-02 15:04:05Z"), fmt.Sprint(v.LogIndex)})
				}
				table(w, rows)
			})
		},
	}
}

func listRepositories(cmd *cobra.Command, g *globals) error {
	all := &pb.ListRepositoriesResponse{}
	q := url.Values{}
	for {
		var page pb.ListRepositoriesResponse
		if err := g.api(cmd.Context(), "GET", "repositories", q, nil, &page); err != nil {
			return err
		}
		all.Repositories = append(all.Repositories, page.Repositories...)
		if page.NextPageToken == "" {
			break
		}
		q.Set("page_token", page.NextPageToken)
	}
	return g.printProto(all, func(w io.Writer) {
		for _, r := range all.Repositories {
			fmt.Fprintln(w, r.Name)
		}
	})
}

func newShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show REFERENCE",
		Short:   "Show a model version: its files, and what is signed about it",
		Long:    "Show a model version: its number, its files, and what verification said of every statement about it when it was pushed. Of an approval: the person's id and, to auditors, the name; the meaning, the time and the reason, as they were signed.",
		Example: "  assay show credit/scorer:1.4.0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			q := url.Values{"repository": {repo.Reference.Repository}, "reference": {string(desc.Digest)}}
			var version pb.GetVersionResponse
			if err := g.api(cmd.Context(), "GET", "version", q, nil, &version); err != nil {
				return err
			}
			facts, err := g.facts(cmd.Context(), repo.Reference.Repository, string(desc.Digest))
			if err != nil {
				return err
			}
			names := map[string]string{}
			for _, f := range facts {
				if a, ok := approvalOf(f); ok && names[a.Person] == "" {
					names[a.Person] = g.printedName(cmd.Context(), a)
				}
			}
			v := version.Version
			return g.printProto(&pb.ListVersionsResponse{Versions: []*pb.Version{v}}, func(w io.Writer) {
				fmt.Fprintf(w, "%s version %d (%s)\n", v.Repository, v.Number, strings.Join(v.Tags, ", "))
				fmt.Fprintf(w, "  digest %s\n  type   %s\n  born   %s as %s, log leaf %d\n", v.Digest, v.ArtifactType, v.BornAt.AsTime().Format("2006-01-02 15:04:05Z"), v.BornAs, v.LogIndex)
				for _, f := range v.Files {
					fmt.Fprintf(w, "  file   %s  %s  %s\n", f.Name, byteSize(f.Size), short(f.Digest))
				}
				for _, f := range facts {
					by := f.Outcome
					if f.Identity != "" {
						by += ", by " + f.Identity
					}
					fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-12s %s, log leaf %d  %s", predicateName(f.PredicateType), by, f.LogIndex, cmp.Or(f.Message, aboutWhat(f))), " "))
					if a, ok := approvalOf(f); ok {
						fmt.Fprintf(w, "               %s %s, meaning %s, at %s, reason %q\n", a.Person, names[a.Person], a.Meaning, a.ApprovedAt.UTC().Format("2006-01-02 15:04:05Z"), a.Reason)
					}
				}
				if len(facts) == 0 {
					fmt.Fprintln(w, "  nothing is signed about it: assay sign")
				}
			})
		},
	}
}

// approvalOf returns the approval that a verified fact is.
func approvalOf(f *pb.Fact) (attest.Approval, bool) {
	if f.Outcome != verify.OutcomeVerified || f.PredicateType != attest.PredicateApproval {
		return attest.Approval{}, false
	}
	p, err := attest.ParsePredicate(attest.Statement{PredicateType: f.PredicateType, Predicate: json.RawMessage(f.Predicate)})
	a, ok := p.(attest.Approval)
	return a, ok && err == nil
}

// printedName is the name of whoever approved, as far as the server tells it:
// the statement has the id and a hash only.
func (g *globals) printedName(ctx context.Context, a attest.Approval) string {
	var answer pb.GetPersonResponse
	if err := g.api(ctx, "GET", "persons/"+url.PathEscape(a.Person), nil, nil, &answer); err != nil {
		return "(the name is not known here)"
	}
	p := answer.GetPerson()
	switch {
	case p.GetErasedAt() != nil:
		return "(the name was erased)"
	case p.GetName() == "":
		return "(the name is for auditors)"
	case p.GetNameHash() != a.NameHash:
		return fmt.Sprintf("(%q now; signed under another name)", p.GetName())
	}
	return fmt.Sprintf("(%q)", p.GetName())
}

// aboutWhat says which environment a certificate or deployment is about.
func aboutWhat(f *pb.Fact) string {
	p, err := attest.ParsePredicate(attest.Statement{PredicateType: f.PredicateType, Predicate: json.RawMessage(f.Predicate)})
	if err != nil {
		return ""
	}
	switch p := p.(type) {
	case attest.Certificate:
		return fmt.Sprintf("%s until %s", p.EnvironmentName, p.Validity.NotAfter.Format("2006-01-02"))
	case attest.Deployment:
		return fmt.Sprintf("%s from %s", p.EnvironmentName, p.From.Format("2006-01-02 15:04:05Z"))
	}
	return ""
}
