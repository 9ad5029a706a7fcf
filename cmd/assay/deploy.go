package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

func newDeployCommand(g *globals) *cobra.Command {
	var with signing
	var env, basis, by, from string
	c := &cobra.Command{
		Use:   "deploy REFERENCE --env NAME",
		Short: "Record that a model version runs in an environment",
		Long: `Sign and attach the statement that a model version runs in an environment from a
moment on. It deploys nothing: whoever does says so here. The statement names
the environment's current document, so it has to be registered.`,
		Example: "  assay deploy credit/scorer:1.4.0 --env prod-eu --key keys/deployment.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := with.signer(cmd.Context())
			if err != nil {
				return err
			}
			at := time.Now().UTC()
			if from != "" {
				if at, err = parseTime(from); err != nil {
					return err
				}
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, document, err := g.environment(cmd.Context(), env)
			if err != nil {
				return err
			}
			statement, err := attest.NewStatement(desc.Digest, attest.Deployment{
				EnvironmentName: env, Environment: attest.ResourceOf(attest.EnvironmentType, document.Digest),
				Basis: basis, StatedBy: by, From: at,
			})
			if err != nil {
				return err
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateDeployment)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateDeployment, ref.Descriptor.Digest}, "deployment to "+env+" recorded for")
		},
	}
	f := c.Flags()
	f.StringVar(&env, "env", "", "the environment")
	with.addFlags(f, verify.Deployment)
	f.StringVar(&basis, "basis", "declared", "observed: you saw it answer there; declared: you say so")
	f.StringVar(&by, "by", "pipeline", "an opaque id of who says so; no names")
	f.StringVar(&from, "from", "", "since when (RFC 3339; default: now)")
	c.MarkFlagRequired("env")
	return c
}

func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, usagef("%q is no time: write 2026-03-03T12:00:00Z, or 2026-03-03 (UTC)", s)
}

func newEnvRanCommand(g *globals) *cobra.Command {
	var at string
	c := &cobra.Command{
		Use:   "ran NAME",
		Short: "What ran in an environment, now or at a time",
		Long: `Say what ran in an environment at a time: the newest deployment that had begun by
then, by somebody whom the trust file believes, and below it what ran before.`,
		Example: "  assay env ran prod-eu --at 2026-03-03T12:00:00Z",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"environment": {args[0]}}
			when := "now"
			if at != "" {
				t, err := parseTime(at)
				if err != nil {
					return err
				}
				when = t.Format(time.RFC3339)
				q.Set("at", t.Format(time.RFC3339Nano))
			}
			var answer pb.ListDeploymentsResponse
			if err := g.api(cmd.Context(), "GET", "deployments", q, nil, &answer); err != nil {
				return err
			}
			if err := g.printProto(&answer, func(w io.Writer) {
				if len(answer.Deployments) == 0 {
					fmt.Fprintf(w, "no deployment to %s is recorded at %s\n", args[0], when)
					return
				}
				d := answer.Deployments[0]
				fmt.Fprintf(w, "%s at %s: %s:%s (version %d, %s)\n", args[0], when, d.Repository, strings.Join(d.Tags, ","), d.Version, d.Model)
				rows := [][]string{{"FROM", "MODEL", "BASIS", "STATED BY", "SIGNED BY", "LEAF"}}
				for _, d := range answer.Deployments {
					rows = append(rows, []string{d.From.AsTime().Format(time.RFC3339), d.Repository + ":" + strings.Join(d.Tags, ","), d.Basis, d.StatedBy, d.Identity, fmt.Sprint(d.LogIndex)})
				}
				table(w, rows)
			}); err != nil {
				return err
			}
			if len(answer.Deployments) == 0 {
				return verdict(exitNoEvidence)
			}
			return nil
		},
	}
	c.Flags().StringVar(&at, "at", "", "the time (RFC 3339 or a date, UTC; default: now)")
	return c
}
