package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/gate"
	"oras.land/oras-go/v2/errdef"
)

func newGateCommand(g *globals) *cobra.Command {
	var env, trustFile, policyFile, layout, envDocument, statusFile, breakGlass string
	var offline bool
	c := &cobra.Command{
		Use:   "gate REFERENCE --env NAME",
		Short: "May this version be deployed there?",
		Long: `Ask whether a model version may be deployed to an environment. The server
gathers the evidence, decides, and records the decision in its log. With
--offline the same decision is made here, from what an OCI registry or a folder
holds, and recorded nowhere.

The exit status is 0 for allow, 3 for deny, and 4 for deny because nothing that
verifies was found at all.`,
		Example: `  assay gate credit/scorer:1.4.0 --env prod-eu
  assay gate credit/scorer:1.4.0 --env prod-eu --offline --trust trust.yaml --status status.json
  assay gate credit/scorer:1.4.0 --env prod-eu --break-glass "outage 4711; the approver cannot be reached"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if offline || layout != "" {
				if breakGlass != "" {
					return usagef("--break-glass asks the server, which logs it: leave out --offline and --layout")
				}
				return gateOffline(cmd, g, args[0], env, trustFile, policyFile, layout, envDocument, statusFile)
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var answer pb.DecideResponse
			err = g.api(cmd.Context(), "POST", "decisions", nil, &pb.DecideRequest{
				Repository: repo.Reference.Repository, Reference: string(desc.Digest), Environment: env, BreakGlass: breakGlass,
			}, &answer)
			if err != nil {
				return err
			}
			d := answer.Decision
			if d.BreakGlass {
				// Even under --quiet and -o json.
				fmt.Fprintf(g.err, "assay: BREAK GLASS: allowed without the approvals that are required; log leaf %d says that you did it\n", answer.LogIndex)
			}
			err = g.printProto(&answer, func(w io.Writer) {
				var reasons []gate.Reason
				for _, r := range d.Reasons {
					reasons = append(reasons, gate.Reason{Code: r.Code, Message: r.Message, Remedy: r.Remedy})
				}
				printDecision(w, d.Allow, args[0], env, reasons)
				fmt.Fprintf(w, "  recorded as log leaf %d", answer.LogIndex)
				if answer.Repeats > 1 {
					fmt.Fprintf(w, ", %d times", answer.Repeats)
				}
				fmt.Fprintln(w)
			})
			if err != nil {
				return err
			}
			return verdict(gateStatus(d.Allow, answer.NoEvidence))
		},
	}
	f := c.Flags()
	f.StringVar(&env, "env", "", "the environment it is to be deployed to")
	f.BoolVar(&offline, "offline", false, "decide here, without the server's gate")
	f.StringVar(&trustFile, "trust", "trust.yaml", "offline: the trust file")
	f.StringVar(&policyFile, "policy", "", "offline: the policy file (default: everything is required)")
	f.StringVar(&statusFile, "status", "", "offline: a signed status list, from 'assay trust status'")
	f.StringVar(&breakGlass, "break-glass", "", "why to allow it without the approvals that are required; for operators, and logged")
	f.StringVar(&layout, "layout", "", "offline: read the evidence from an OCI image layout in this folder")
	f.StringVar(&envDocument, "env-document", "", "offline: the digest of the environment's current document (default: asked of the registry)")
	c.MarkFlagRequired("env")
	return c
}

func gateStatus(allow, noEvidence bool) int {
	switch {
	case allow:
		return exitOK
	case noEvidence:
		return exitNoEvidence
	}
	return exitDenied
}

func printDecision(w io.Writer, allow bool, ref, env string, reasons []gate.Reason) {
	word := "DENY"
	if allow {
		word = "ALLOW"
	}
	fmt.Fprintf(w, "%s  %s to %s\n", word, ref, env)
	for _, r := range reasons {
		fmt.Fprintf(w, "  %s: %s\n", r.Code, r.Message)
		if r.Remedy != "" {
			fmt.Fprintf(w, "    what would change it: %s\n", r.Remedy)
		}
	}
}

func gateOffline(cmd *cobra.Command, g *globals, ref, env, trustFile, policyFile, layout, envDocument, statusFile string) error {
	policy := gate.DefaultPolicy()
	if policyFile != "" {
		raw, err := os.ReadFile(policyFile)
		if err != nil {
			return err
		}
		if policy, err = gate.ParsePolicy(raw); err != nil {
			return err
		}
	}
	ev, err := g.gather(cmd, ref, trustFile, layout, statusFile)
	if err != nil {
		return err
	}
	q := gate.Question{Model: ev.Subject, Repository: ev.Repository, Environment: env, EnvironmentDocument: digest.Digest(envDocument), Now: time.Now()}
	if envDocument == "" && layout == "" {
		repo, _, err := g.repository(ref)
		if err != nil {
			return err
		}
		repo.Reference.Repository = attest.EnvironmentRepository(env)
		desc, err := repo.Resolve(cmd.Context(), environmentTag)
		switch {
		case err == nil:
			q.EnvironmentDocument = desc.Digest
		case !errors.Is(err, errdef.ErrNotFound):
			return g.explain(err, "looking for environment "+env)
		}
	}
	q.Documents = g.environmentDocuments(cmd.Context(), layout, env, append(gate.Measured(ev, env), q.EnvironmentDocument))
	d := gate.Decide(policy, ev, q)
	if err := g.print(d, func(w io.Writer) { printDecision(w, d.Allow, ref, env, d.Reasons) }); err != nil {
		return err
	}
	return verdict(gateStatus(d.Allow, d.NoEvidence(ev)))
}

// environmentDocuments reads documents of an environment, from a folder or the
// registry. Those that cannot be read are left out: to the gate, which then does
// not know what has changed, that is as if everything had.
func (g *globals) environmentDocuments(ctx context.Context, layout, env string, want []digest.Digest) map[digest.Digest]attest.Environment {
	documents := map[digest.Digest]attest.Environment{}
	read := func(d digest.Digest) (attest.Environment, error) {
		r, err := g.recorded(ctx, env+"@"+string(d))
		return r.document, err
	}
	if layout != "" {
		src, err := verify.Layout(ctx, layout)
		if err != nil {
			return documents
		}
		read = func(d digest.Digest) (attest.Environment, error) {
			desc, ok, err := src.(verify.Tagger).Tagged(ctx, string(d))
			if err == nil && !ok {
				err = errdef.ErrNotFound
			}
			if err != nil {
				return attest.Environment{}, err
			}
			return conformance.ReadEnvironment(ctx, src.Fetch, desc)
		}
	}
	for _, d := range want {
		if d == "" {
			continue
		}
		if e, err := read(d); err == nil {
			documents[d] = e
		}
	}
	return documents
}
