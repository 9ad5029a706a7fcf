package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
)

func newTrustCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "trust",
		Short: "Say who may say what about models",
		Long: `Say who may say what about models: a trust file lists identities, each with a
public key, roles, repositories and, if wanted, a window of time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newTrustNewCommand(g), newTrustApplyCommand(g), newTrustShowCommand(g))
	return c
}

func newTrustNewCommand(g *globals) *cobra.Command {
	var repositories []string
	c := &cobra.Command{
		Use:     "new ROLE=PUBLICKEYFILE...",
		Short:   "Write a trust file with one key for each role",
		Long:    "Write a trust file to standard output, with an identity for each role and its public key.",
		Example: "  assay trust new release=keys/release.pub conformance=keys/conformance.pub > trust.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			type identity struct {
				ID           string   `yaml:"id"`
				Roles        []string `yaml:"roles"`
				Repositories []string `yaml:"repositories"`
				PublicKey    string   `yaml:"publicKey"`
			}
			file := struct {
				Version    int        `yaml:"version"`
				Identities []identity `yaml:"identities"`
			}{Version: 1}
			for _, a := range args {
				role, path, ok := strings.Cut(a, "=")
				if !ok {
					return usagef("%q: write ROLE=FILE, for example release=keys/release.pub", a)
				}
				key, err := os.ReadFile(path)
				if err != nil {
					return remedy(err, "make keys with 'assay keys generate'")
				}
				file.Identities = append(file.Identities, identity{role, []string{role}, repositories, string(key)})
			}
			raw, err := yaml.Marshal(file)
			if err != nil {
				return err
			}
			if _, err := verify.ParseTrust(raw); err != nil {
				return err
			}
			_, err = g.out.Write(raw)
			return err
		},
	}
	c.Flags().StringSliceVar(&repositories, "repositories", []string{"**"}, "patterns of the repositories they are trusted in")
	return c
}

func newTrustApplyCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "apply FILE",
		Short: "Put a trust file in force on the server",
		Long: `Put a trust file in force on the server. Decisions from now on are made in its
light; its digest is in each of them and in the log.`,
		Example: "  assay trust apply trust.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return remedy(err, "write one with 'assay trust new'")
			}
			if _, err := verify.ParseTrust(raw); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			var answer pb.SetTrustResponse
			if err := g.api(cmd.Context(), "PUT", "trust", nil, &pb.SetTrustRequest{Yaml: string(raw)}, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				fmt.Fprintf(w, "in force: trust %s, log leaf %d\n", answer.Trust.Digest, answer.Trust.GetLogIndex())
			})
		},
	}
}

func newTrustShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show [FILE]",
		Short:   "Show who is trusted, by a file or by the server",
		Long:    "Show who is trusted: by a trust file, or by the one in force on the server.",
		Example: "  assay trust show",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw []byte
			var err error
			if len(args) == 1 {
				raw, err = os.ReadFile(args[0])
			} else {
				var answer pb.GetTrustResponse
				err = g.api(cmd.Context(), "GET", "trust", nil, nil, &answer)
				raw = []byte(answer.GetTrust().GetYaml())
				if err == nil && len(raw) == 0 {
					return remedy(fmt.Errorf("the server trusts nobody yet"), "assay trust apply trust.yaml")
				}
			}
			if err != nil {
				return err
			}
			t, err := verify.ParseTrust(raw)
			if err != nil {
				return err
			}
			return g.print(struct {
				Digest digest.Digest `json:"digest"`
				Trust  *verify.Trust `json:"trust"`
			}{t.Digest(), t}, func(w io.Writer) {
				rows := [][]string{{"IDENTITY", "ROLES", "REPOSITORIES", "WINDOW"}}
				for _, id := range t.Identities() {
					window := "always"
					if !id.NotBefore.IsZero() || !id.NotAfter.IsZero() {
						window = fmt.Sprintf("%s to %s", id.NotBefore.Format("2006-01-02"), id.NotAfter.Format("2006-01-02"))
					}
					rows = append(rows, []string{id.ID, fmt.Sprint(id.Roles), strings.Join(id.Repositories, " "), window})
				}
				table(w, rows)
				fmt.Fprintf(w, "digest %s\n", t.Digest())
			})
		},
	}
}
