package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify/gate"
)

func newPolicyCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Say what a deployment needs",
		Long: `Say what a deployment needs. A policy file (YAML, version 1) has

  version: 1
  requireRelease: true       # a release signature
  requireLineage: true       # verified lineage that names a dataset
  requireCertificate: true   # a certificate for the environment as it is now
  requireApprovals: 2        # persons, none of whom submitted it; 0 if left out
  requirePusher: true        # and of whom it is known that they did not push it
  requireStatus: true        # offline: a status list that is up to date`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newPolicyApplyCommand(g), newPolicyShowCommand(g))
	return c
}

func newPolicyApplyCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "apply FILE",
		Short:   "Put a policy in force on the server",
		Long:    "Put a policy in force on the server. Decisions from now on are made by it; its digest is in each of them and in the log.",
		Example: "  assay policy apply policy.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return remedy(err, "see 'assay policy --help' for what is in it")
			}
			if _, err := gate.ParsePolicy(raw); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			var answer pb.SetPolicyResponse
			if err := g.api(cmd.Context(), "PUT", "policy", nil, &pb.SetPolicyRequest{Yaml: string(raw)}, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				fmt.Fprintf(w, "in force: policy %s, log leaf %d\n", answer.Policy.GetDigest(), answer.Policy.GetLogIndex())
			})
		},
	}
}

func newPolicyShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the policy in force",
		Long:    "Show the policy in force on the server.",
		Example: "  assay policy show",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.GetPolicyResponse
			if err := g.api(cmd.Context(), "GET", "policy", nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				if answer.GetPolicy().GetYaml() == "" {
					fmt.Fprintln(w, "# the built-in one: a release, lineage and a certificate are required")
				}
				fmt.Fprintf(w, "%s# digest %s\n", answer.GetPolicy().GetYaml(), answer.GetPolicy().GetDigest())
			})
		},
	}
}
