package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/errdef"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/fingerprint"
	"github.com/assay-dev/assay/conformance/target/oip"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// environmentTag names the current document in the repository of an environment.
const environmentTag = "current"

func newEnvCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "env",
		Short: "Register environments, and ask what ran in them",
		Long:  "Register the places where models are served, see what changed in them, and ask what ran there.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newEnvRegisterCommand(g), newEnvShowCommand(g), newEnvDiffCommand(g), newEnvListCommand(g), newEnvRanCommand(g))
	return c
}

func newEnvRegisterCommand(g *globals) *cobra.Command {
	var t attest.Target
	var labels map[string]string
	var declared map[string]string
	var local bool
	var pid int
	c := &cobra.Command{
		Use:   "register NAME",
		Short: "Describe an environment as it is now",
		Long: `Describe an environment as it is now: where it is reached, what it declares about
itself and, with --local, what can be seen of this machine. If nothing changed
since the last time, its document stays the one it was, and so do certificates.`,
		Example: "  assay env register prod-eu --url http://10.1.2.3:8000 --model credit --version 1.4.0 --label region=eu-central-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tg, err := conformance.Open(t)
			if err != nil {
				return err
			}
			d, err := tg.Describe(cmd.Context())
			if err != nil {
				return remedy(fmt.Errorf("environment %s: %w", args[0], err), "start it, or correct --url, --model and --version")
			}
			e := attest.Environment{Name: args[0], Target: t, Labels: labels, Fingerprint: fingerprint.Declared(d), RecordedAt: time.Now().UTC().Truncate(time.Second)}
			if local || pid > 0 {
				maps.Copy(e.Fingerprint, fingerprint.Local(cmd.Context(), pid))
			}
			for k, v := range declared {
				e.Fingerprint[k] = attest.FingerprintField{Value: v, Assurance: attest.Declared}
			}
			repo, _, err := g.repository(attest.EnvironmentRepository(args[0]) + ":" + environmentTag)
			if err != nil {
				return err
			}
			state := "registered"
			old, desc, err := g.environment(cmd.Context(), args[0])
			switch {
			case err == nil && len(attest.Diff(old, e)) == 0:
				return g.printEnvironment(old, desc, "unchanged")
			case err == nil:
				state = fmt.Sprintf("changed (%d fields; 'assay env diff %s' says which)", len(attest.Diff(old, e)), args[0])
			case !errors.Is(err, errdef.ErrNotFound):
				return err
			}
			a, err := conformance.EnvironmentArtifact(e)
			if err != nil {
				return err
			}
			// The second tag keeps the document when the first moves on.
			if err := g.pushDocument(cmd.Context(), repo, a, environmentTag, e.RecordedAt.Format("20060102T150405Z")); err != nil {
				return err
			}
			return g.printEnvironment(e, a.Descriptor, state)
		},
	}
	f := c.Flags()
	f.StringVar(&t.Protocol, "protocol", oip.Name, "how it is spoken to")
	f.StringVar(&t.URL, "url", "", "where it is reached")
	f.StringVar(&t.Model, "model", "", "the model's name there")
	f.StringVar(&t.Version, "version", "", "the version that must answer")
	f.StringToStringVar(&labels, "label", nil, "labels, KEY=VALUE")
	f.BoolVar(&local, "local", false, "the model is served on this machine: add what can be seen of it")
	f.IntVar(&pid, "pid", 0, "the process here that serves the model: add its settings, its command and its container")
	f.StringToStringVar(&declared, "declare", nil, "what you know of it and nobody can see, KEY=VALUE")
	c.MarkFlagRequired("url")
	c.MarkFlagRequired("model")
	return c
}

// environment returns the current document of an environment.
func (g *globals) environment(ctx context.Context, name string) (attest.Environment, ocispec.Descriptor, error) {
	repo, _, err := g.repository(attest.EnvironmentRepository(name) + ":" + environmentTag)
	if err != nil {
		return attest.Environment{}, ocispec.Descriptor{}, err
	}
	desc, err := repo.Resolve(ctx, environmentTag)
	if errors.Is(err, errdef.ErrNotFound) {
		return attest.Environment{}, desc, remedy(fmt.Errorf("environment %s: %w", name, errdef.ErrNotFound), "assay env register %s --url … --model …", name)
	}
	if err != nil {
		return attest.Environment{}, desc, g.explain(err, "environment "+name)
	}
	e, err := conformance.ReadEnvironment(ctx, g.fetcher(repo), desc)
	return e, desc, err
}

func (g *globals) printEnvironment(e attest.Environment, desc ocispec.Descriptor, state string) error {
	return g.print(struct {
		Digest   string             `json:"digest"`
		State    string             `json:"state"`
		Document attest.Environment `json:"document"`
	}{string(desc.Digest), state, e}, func(w io.Writer) {
		fmt.Fprintf(w, "environment %s: %s\n  document %s\n  target   %s at %s, model %s %s\n", e.Name, state, desc.Digest, e.Target.Protocol, e.Target.URL, e.Target.Model, e.Target.Version)
		for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
			fmt.Fprintf(w, "  label    %s = %s\n", k, e.Labels[k])
		}
		for _, k := range slices.Sorted(maps.Keys(e.Fingerprint)) {
			f := e.Fingerprint[k]
			value := f.Value
			if len(value) > 60 {
				value = value[:60] + "…"
			}
			fmt.Fprintf(w, "  %-11s %s = %s\n", f.Assurance, k, value)
		}
	})
}

func newEnvShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show what an environment is now",
		Long:    "Show what an environment is now, and how each part of it is known.",
		Example: "  assay env show prod-eu",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, desc, err := g.environment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.printEnvironment(e, desc, "current")
		},
	}
}

func newEnvDiffCommand(g *globals) *cobra.Command {
	var models []string
	var trustFile string
	c := &cobra.Command{
		Use:   "diff NAME [TAG [TAG]]",
		Short: "Show what changed in an environment, and what that voids",
		Long: `Show what changed between two documents of an environment: by default between
the last but one and the current one. A hard change voids the certificates that
name the older document. With --model, those of a model are listed, and which of
them stand.`,
		Example: "  assay env diff prod-eu --model credit/scorer:1.4.0",
		Args:    cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, _, err := g.repository(attest.EnvironmentRepository(args[0]))
			if err != nil {
				return err
			}
			tags := args[1:]
			if len(tags) < 2 {
				var all []string
				if err := repo.Tags(cmd.Context(), "", func(page []string) error { all = append(all, page...); return nil }); err != nil {
					return g.explain(err, "environment "+args[0])
				}
				all = slices.DeleteFunc(all, func(t string) bool { return t == environmentTag })
				if len(all) < 2 && len(tags) == 0 {
					return remedy(fmt.Errorf("%s has one document only", args[0]), "register it again after a change")
				}
				if len(tags) == 0 {
					tags = []string{all[len(all)-2]}
				}
				tags = append(tags, environmentTag)
			}
			var docs [2]attest.Environment
			var documents [2]digest.Digest
			for i, t := range tags[:2] {
				desc, err := repo.Resolve(cmd.Context(), t)
				if err != nil {
					return g.explain(err, args[0]+" as "+t)
				}
				documents[i] = desc.Digest
				if docs[i], err = conformance.ReadEnvironment(cmd.Context(), g.fetcher(repo), desc); err != nil {
					return err
				}
			}
			changes := attest.Diff(docs[0], docs[1])
			hard := 0
			for _, c := range changes {
				if c.Trigger == attest.Hard {
					hard++
				}
			}
			certificates := []certificateState{}
			for _, model := range models {
				list, err := g.certificates(cmd, model, trustFile, docs[0].Name, documents, hard)
				if err != nil {
					return err
				}
				certificates = append(certificates, list...)
			}
			return g.print(struct {
				Old          digest.Digest      `json:"old"`
				New          digest.Digest      `json:"new"`
				Changes      []attest.Change    `json:"changes"`
				Hard         int                `json:"hard"`
				Certificates []certificateState `json:"certificates"`
			}{documents[0], documents[1], changes, hard, certificates}, func(w io.Writer) {
				rows := [][]string{{"FIELD", "WAS", "IS", "TRIGGER", "WHY"}}
				for _, c := range changes {
					rows = append(rows, []string{c.Field, brief(c.Old), brief(c.New), string(c.Trigger), c.Why})
				}
				table(w, rows)
				switch {
				case len(changes) == 0:
					fmt.Fprintln(w, "nothing changed: certificates for either document stand")
				case hard == 0:
					fmt.Fprintf(w, "no certificate for %s is void\n", documents[0])
				default:
					fmt.Fprintf(w, "void: every certificate that names environment document %s (%d hard changes)\n", documents[0], hard)
				}
				if len(models) > 0 {
					rows := [][]string{{"CERTIFICATE", "MODEL", "STATE", "WHY"}}
					for _, c := range certificates {
						rows = append(rows, []string{short(string(c.Certificate)), c.Model, c.State, c.Why})
					}
					table(w, rows)
				}
			})
		},
	}
	c.Flags().StringArrayVar(&models, "model", nil, "list the certificates of this model for the environment")
	c.Flags().StringVar(&trustFile, "trust", "trust.yaml", "the trust file, for --model")
	return c
}

// A certificateState says whether a certificate outlives a change.
type certificateState struct {
	Certificate digest.Digest `json:"certificate"` // the manifest that carries it
	Model       string        `json:"model"`
	State       string        `json:"state"` // "void", "stands", or "not verified"
	Why         string        `json:"why"`
}

// certificates lists those of a model for an environment, and what became of
// them.
func (g *globals) certificates(cmd *cobra.Command, model, trustFile, name string, documents [2]digest.Digest, hard int) ([]certificateState, error) {
	ev, err := g.gather(cmd, model, trustFile, "")
	if err != nil {
		return nil, err
	}
	var list []certificateState
	for _, f := range ev.Facts {
		if f.About != ev.Subject || f.PredicateType != attest.PredicateCertificate {
			continue
		}
		s := certificateState{Certificate: f.Referrer, Model: model}
		c, ok := verify.Predicate[attest.Certificate](f)
		document, err := c.Environment.Digest.OCI()
		switch {
		case !ok || err != nil:
			s.State, s.Why = "not verified", f.Message
		case c.EnvironmentName != name:
			continue
		case document == documents[1]:
			s.State, s.Why = "stands", "it names the newer document"
		case document != documents[0]:
			s.State, s.Why = "void", "it names neither of the two documents"
		case hard > 0:
			s.State, s.Why = "void", fmt.Sprintf("it names the older document, and %d hard changes came after it", hard)
		default:
			s.State, s.Why = "stands", "nothing changed that it depends on"
		}
		list = append(list, s)
	}
	return list, nil
}

// brief shortens a value for a table.
func brief(s string) string {
	if r := []rune(s); len(r) > 48 {
		return string(r[:48]) + "…"
	}
	return s
}

func newEnvListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the environments",
		Long:    "List the environments that are registered.",
		Example: "  assay env list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.ListEnvironmentsResponse
			if err := g.api(cmd.Context(), "GET", "environments", nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { fmt.Fprintln(w, strings.Join(answer.Names, "\n")) })
		},
	}
}
