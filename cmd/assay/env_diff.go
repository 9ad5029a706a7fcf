package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/fingerprint"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify/attest"
)

// A comparison is what changed between two environment documents, and what
// that does to certificates.
type comparison struct {
	From         recordedEnvironment `json:"from"`
	To           recordedEnvironment `json:"to"`
	Changes      []attest.Change     `json:"changes"`
	Certificates []affected          `json:"certificates"`
	Voids        int                 `json:"voids"`
}

// A recordedEnvironment is a document and where it was found.
type recordedEnvironment struct {
	Name       string        `json:"name"`
	Document   digest.Digest `json:"document,omitempty"` // "" if it is not recorded
	RecordedAt time.Time     `json:"recordedAt"`

	document attest.Environment
}

// An affected certificate is one of the environment's, and what the change
// does to it.
type affected struct {
	Repository  string        `json:"repository"`
	Version     int32         `json:"version"`
	Tags        []string      `json:"tags,omitempty"`
	Model       string        `json:"model"`
	Certificate string        `json:"certificate"` // the manifest that carries it
	Measured    digest.Digest `json:"measured"`    // the document it was made for
	NotAfter    time.Time     `json:"notAfter"`

	Effect effect   `json:"effect"`
	Why    []string `json:"why"`
}

// An effect is what a change does to a certificate.
type effect string

const (
	effectVoid    effect = "void"        // it stood before the change
	effectEarlier effect = "void before" // it was void for the older document already
	effectStands  effect = "stands"
	effectNone    effect = "not in force" // withdrawn, expired, or not verified: there is nothing to void
)

func newEnvDiffCommand(g *globals) *cobra.Command {
	var local localFlags
	var offline bool
	var repositories []string
	c := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Show what changed in an environment, and which certificates that voids",
		Long: `Compare two environment documents field by field, and say which certificates of
A the change voids, and why. A and B are NAME (the current document), NAME:TAG,
NAME@DIGEST or a file (ending in .json, as 'assay env show -o json' prints it).

With A alone the last document but one is compared with the current one. With
--local the document A is compared with this machine as it is now; its server
is asked as well.

A hard change voids certificates; after a soft one they stand, and should be
measured again soon. A field that one document does not have is a change too.

The exit status is 0 if no certificate is void by it and 3 if one is. With
--offline no certificate is looked for, and it is 3 if a change is hard.`,
		Example: `  assay env diff prod-eu
  assay env diff prod-eu staging-eu
  assay env diff edge-7 --pid $(pidof tritonserver)`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if len(args) == 2 && local.wanted() {
				return usagef("--local compares one document with this machine: leave %s out", args[1])
			}
			from, to, err := g.compared(ctx, args, local)
			if err != nil {
				return err
			}
			c := comparison{From: from, To: to, Changes: attest.Diff(from.document, to.document), Certificates: []affected{}}
			hard := slices.ContainsFunc(c.Changes, func(c attest.Change) bool { return c.Trigger == attest.Hard })
			if !offline {
				if c.Certificates, err = g.affected(ctx, from, to, repositories); err != nil {
					return err
				}
				for _, a := range c.Certificates {
					if a.Effect == effectVoid {
						c.Voids++
					}
				}
			}
			if c.Changes == nil {
				c.Changes = []attest.Change{}
			}
			if err := g.print(c, func(w io.Writer) { printComparison(w, c, offline) }); err != nil {
				return err
			}
			if c.Voids > 0 || offline && hard {
				return verdict(exitDenied)
			}
			return nil
		},
	}
	f := c.Flags()
	local.register(f, "compare A with this machine as it is now")
	f.BoolVar(&offline, "offline", false, "look for no certificates")
	f.StringSliceVar(&repositories, "repository", nil, "look for certificates in these repositories only (default: all)")
	return c
}

// compared finds the two documents that are to be compared.
func (g *globals) compared(ctx context.Context, args []string, local localFlags) (from, to recordedEnvironment, err error) {
	switch {
	case len(args) == 2:
		if from, err = g.recorded(ctx, args[0]); err == nil {
			to, err = g.recorded(ctx, args[1])
		}
		return from, to, err
	case local.wanted():
		if from, err = g.recorded(ctx, args[0]); err != nil {
			return from, to, err
		}
		to, err = now(ctx, from.document, local)
		return from, to, err
	}
	repo, reference, err := g.repository(attest.EnvironmentRepository(args[0]))
	if err != nil {
		return from, to, err
	}
	if reference != "" || strings.HasSuffix(args[0], ".json") {
		return from, to, usagef("%s is one document: name the one to compare it with, or --local", args[0])
	}
	var all []string
	if err := repo.Tags(ctx, "", func(page []string) error { all = append(all, page...); return nil }); err != nil {
		return from, to, g.explain(err, "environment "+args[0])
	}
	all = slices.DeleteFunc(all, func(t string) bool { return t == environmentTag })
	if len(all) < 2 {
		return from, to, remedy(fmt.Errorf("%s has one document only", args[0]), "register it again after a change, or compare it with this machine: --local")
	}
	slices.Sort(all) // they are times
	if from, err = g.recorded(ctx, args[0]+":"+all[len(all)-2]); err == nil {
		to, err = g.recorded(ctx, args[0])
	}
	return from, to, err
}

// recorded reads NAME, NAME:TAG, NAME@DIGEST or a file.
func (g *globals) recorded(ctx context.Context, ref string) (recordedEnvironment, error) {
	var r recordedEnvironment
	if strings.HasSuffix(ref, ".json") {
		raw, err := os.ReadFile(ref)
		if err != nil {
			return r, remedy(err, "name an environment, or a file with its document")
		}
		if r.document, err = parseEnvironment(raw); err != nil {
			return r, fmt.Errorf("%s is no environment document: %w", ref, err)
		}
		canonical, err := conformance.EnvironmentArtifact(r.document)
		if err != nil {
			return r, fmt.Errorf("%s: %w", ref, err)
		}
		r.Name, r.RecordedAt, r.Document = r.document.Name, r.document.RecordedAt, canonical.Descriptor.Digest
		return r, nil
	}
	repo, reference, err := g.repository(attest.EnvironmentRepository(ref))
	if err != nil {
		return r, err
	}
	desc, err := repo.Resolve(ctx, cmp.Or(reference, environmentTag))
	if errors.Is(err, errdef.ErrNotFound) {
		return r, remedy(fmt.Errorf("environment %s: %w", ref, errdef.ErrNotFound), "'assay env list' lists the environments")
	}
	if err != nil {
		return r, g.explain(err, "environment "+ref)
	}
	if r.document, err = conformance.ReadEnvironment(ctx, g.fetcher(repo), desc); err != nil {
		return r, err
	}
	r.Name, r.RecordedAt, r.Document = r.document.Name, r.document.RecordedAt, desc.Digest
	return r, nil
}

// parseEnvironment reads a document, alone or as 'assay env show -o json'
// prints it.
func parseEnvironment(raw []byte) (attest.Environment, error) {
	var e attest.Environment
	var printed struct {
		Digest, State string
		Document      json.RawMessage
	}
	if json.Unmarshal(raw, &printed) == nil && len(printed.Document) > 0 {
		raw = printed.Document
	}
	if err := attest.Unmarshal(raw, &e); err != nil {
		return e, err
	}
	return e, e.Validate()
}

// now is an environment as it is at this moment, seen from its own machine.
func now(ctx context.Context, e attest.Environment, local localFlags) (recordedEnvironment, error) {
	if _, ok := e.Fingerprint["kernel"]; !ok {
		return recordedEnvironment{}, remedy(fmt.Errorf("%s was registered without --local: nothing of its machine is recorded", e.Name), "register it again, on its machine, with --local")
	}
	before := e.Fingerprint
	e.RecordedAt = time.Now().UTC().Truncate(time.Second)
	fields, err := local.collect(ctx)
	if err != nil {
		return recordedEnvironment{}, err
	}
	tg, err := conformance.Open(e.Target)
	if err != nil {
		return recordedEnvironment{}, err
	}
	if d, err := tg.Describe(ctx); err != nil {
		e.Fingerprint = fingerprint.Silent(before, fmt.Errorf("the server does not answer: %w", err))
	} else {
		e.Fingerprint = fingerprint.Declared(d)
	}
	maps.Copy(e.Fingerprint, fields)
	return recordedEnvironment{Name: e.Name, RecordedAt: e.RecordedAt, document: e}, e.Validate()
}

// affected lists the certificates of an environment and what becomes of them.
func (g *globals) affected(ctx context.Context, from, to recordedEnvironment, repositories []string) ([]affected, error) {
	if len(repositories) == 0 {
		q := url.Values{}
		for {
			var page pb.ListRepositoriesResponse
			if err := g.api(ctx, "GET", "repositories", q, nil, &page); err != nil {
				return nil, remedy(err, "--offline compares the documents without looking for certificates")
			}
			for _, r := range page.Repositories {
				if _, ok := attest.EnvironmentName(r.Name); !ok {
					repositories = append(repositories, r.Name)
				}
			}
			if page.NextPageToken == "" {
				break
			}
			q.Set("page_token", page.NextPageToken)
		}
	}
	docs := &documents{g: g, name: from.Name, known: map[digest.Digest]attest.Environment{}}
	docs.known[from.Document] = from.document

	var mu sync.Mutex
	list := []affected{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, repository := range repositories {
		versions, err := g.versions(ctx, repository)
		if err != nil {
			return nil, errors.Join(err, group.Wait())
		}
		for _, v := range versions {
			group.Go(func() error {
				found, err := g.certificates(ctx, v, from.Name)
				if err != nil {
					return err
				}
				for i := range found {
					found[i].judge(ctx, docs, from, to)
				}
				mu.Lock()
				defer mu.Unlock()
				list = append(list, found...)
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b affected) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), cmp.Compare(a.Version, b.Version), a.NotAfter.Compare(b.NotAfter), strings.Compare(a.Certificate, b.Certificate))
	})
	return list, nil
}

// versions lists the versions of a repository.
func (g *globals) versions(ctx context.Context, repository string) (list []*pb.Version, err error) {
	q := url.Values{"repository": {repository}, "page_size": {"1000"}}
	for {
		var page pb.ListVersionsResponse
		if err := g.api(ctx, "GET", "versions", q, nil, &page); err != nil {
			return nil, fmt.Errorf("the versions of %s: %w", repository, err)
		}
		list = append(list, page.Versions...)
		if page.NextPageToken == "" {
			return list, nil
		}
		q.Set("page_token", page.NextPageToken)
	}
}

// facts lists what is said of a manifest.
func (g *globals) facts(ctx context.Context, repository, reference string) (list []*pb.Fact, err error) {
	q := url.Values{"repository": {repository}, "reference": {reference}, "page_size": {"1000"}}
	for {
		var page pb.ListFactsResponse
		if err := g.api(ctx, "GET", "facts", q, nil, &page); err != nil {
			return nil, fmt.Errorf("what is said of %s@%s: %w", repository, reference, err)
		}
		list = append(list, page.Facts...)
		if page.NextPageToken == "" {
			return list, nil
		}
		q.Set("page_token", page.NextPageToken)
	}
}

// certificates lists the certificates of a version for an environment, with
// what keeps one from being in force.
func (g *globals) certificates(ctx context.Context, v *pb.Version, environment string) (list []affected, err error) {
	facts, err := g.facts(ctx, v.Repository, v.Digest)
	if err != nil {
		return nil, err
	}
	withdrawn := func(facts []*pb.Fact) (how string) {
		var list []attest.Withdrawal
		for _, f := range facts {
			if f.PredicateType != attest.PredicateWithdrawal || f.Outcome != "verified" {
				continue
			}
			p, _ := attest.ParsePredicate(attest.Statement{PredicateType: f.PredicateType, Predicate: json.RawMessage(f.Predicate)})
			w, _ := p.(attest.Withdrawal) // too large to be repeated: for good
			list = append(list, w)
		}
		switch i := attest.InForce(list, time.Now()); {
		case i < 0:
			return ""
		case list[i].Until.IsZero():
			return "withdrawn"
		default:
			return "suspended until " + list[i].Until.Format(time.RFC3339)
		}
	}
	for _, f := range facts {
		if f.PredicateType != attest.PredicateCertificate {
			continue
		}
		a := affected{Repository: v.Repository, Version: v.Number, Tags: v.Tags, Model: v.Digest, Certificate: f.Referrer}
		p, err := attest.ParsePredicate(attest.Statement{PredicateType: f.PredicateType, Predicate: json.RawMessage(f.Predicate)})
		cert, ok := p.(attest.Certificate)
		if err != nil || !ok {
			if f.Outcome != "verified" {
				continue // it cannot be read and is nobody's: it speaks of no environment
			}
			a.Effect, a.Why = effectVoid, []string{"it cannot be read, so it is not known what it was made for"}
			list = append(list, a)
			continue
		}
		if cert.EnvironmentName != environment {
			continue
		}
		a.NotAfter = cert.Validity.NotAfter
		a.Measured, _ = cert.Environment.Digest.OCI() // it was validated
		about, err := g.facts(ctx, v.Repository, f.Referrer)
		if err != nil {
			return nil, err
		}
		switch {
		case f.Outcome != "verified":
			a.Effect, a.Why = effectNone, []string{"it does not verify: " + cmp.Or(f.Message, f.Outcome)}
		case withdrawn(about) != "":
			a.Effect, a.Why = effectNone, []string{"it was " + withdrawn(about)}
		case withdrawn(facts) != "":
			a.Effect, a.Why = effectNone, []string{"its model was " + withdrawn(facts)}
		case !cert.Validity.Contains(time.Now()):
			a.Effect, a.Why = effectNone, []string{fmt.Sprintf("it holds from %s to %s", cert.Validity.NotBefore.Format(time.RFC3339), cert.Validity.NotAfter.Format(time.RFC3339))}
		}
		list = append(list, a)
	}
	return list, nil
}

// judge says what becomes of a certificate: it was made for one document, so
// that is the one whose changes count.
func (a *affected) judge(ctx context.Context, docs *documents, from, to recordedEnvironment) {
	if a.Effect != "" {
		return
	}
	measured, err := docs.read(ctx, a.Measured)
	if err != nil {
		a.Effect, a.Why = effectVoid, []string{fmt.Sprintf("the document that it was made for cannot be read: %v", err)}
		return
	}
	hard := func(changes []attest.Change) (why []string) {
		for _, c := range changes {
			if c.Trigger == attest.Hard {
				why = append(why, fmt.Sprintf("%s was %s and is %s: %s", c.Field, cmp.Or(c.Old, "not known"), cmp.Or(c.New, "not known"), c.Why))
			}
		}
		return why
	}
	changes := attest.Diff(measured, to.document)
	a.Why = hard(changes)
	switch {
	case len(a.Why) > 0 && len(hard(attest.Diff(measured, from.document))) > 0:
		a.Effect = effectEarlier
	case len(a.Why) > 0:
		a.Effect = effectVoid
	default:
		a.Effect, a.Why = effectStands, []string{}
		for _, c := range changes {
			a.Why = append(a.Why, fmt.Sprintf("%s changed: %s", c.Field, c.Why))
		}
	}
}

// documents reads those of an environment, each once. Its methods may be
// called concurrently.
type documents struct {
	g    *globals
	name string

	mu    sync.Mutex
	known map[digest.Digest]attest.Environment // guarded by mu
}

func (d *documents) read(ctx context.Context, document digest.Digest) (attest.Environment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.known[document]; ok {
		return e, nil
	}
	r, err := d.g.recorded(ctx, d.name+"@"+string(document))
	if err == nil {
		d.known[document] = r.document
	}
	return r.document, err
}

func printComparison(w io.Writer, c comparison, offline bool) {
	named := func(r recordedEnvironment) string {
		if r.Document == "" {
			return r.Name + " as it is now"
		}
		return fmt.Sprintf("%s as of %s (%s)", r.Name, r.RecordedAt.Format(time.RFC3339), short(string(r.Document)))
	}
	fmt.Fprintf(w, "from %s\nto   %s\n", named(c.From), named(c.To))
	if len(c.Changes) == 0 {
		fmt.Fprintln(w, "nothing changed")
	} else {
		rows := [][]string{{"FIELD", "WAS", "IS", "TRIGGER"}}
		for _, change := range c.Changes {
			rows = append(rows, []string{change.Field, clip(change.Old, 48), clip(change.New, 48), string(change.Trigger)})
		}
		table(w, rows)
	}
	if offline {
		return
	}
	if len(c.Certificates) == 0 {
		fmt.Fprintf(w, "no certificate of %s is recorded\n", c.From.Name)
		return
	}
	fmt.Fprintf(w, "certificates of %s: %d, of which %d are void by this change\n", c.From.Name, len(c.Certificates), c.Voids)
	for _, a := range c.Certificates {
		fmt.Fprintf(w, "  %-12s %s version %d (%s), certificate %s, until %s\n", a.Effect, a.Repository, a.Version, strings.Join(a.Tags, ", "), short(a.Certificate), a.NotAfter.Format("2006-01-02"))
		for _, why := range a.Why {
			fmt.Fprintf(w, "    %s\n", clip(why, 200))
		}
	}
}
