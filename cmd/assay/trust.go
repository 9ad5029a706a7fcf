package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

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
		Long: `Say who may say what about models. A trust file (YAML, version 1) has

  identities   who is known, by a public key or by what a certificate says, with
               roles, repositories and, if wanted, a window of time
  authorities  whose certificates (a private authority, or a Sigstore instance)
               and timestamps are believed
  quorums      where one statement is not enough

  version: 1
  identities:
  - id: release-2026           # rotation: another identity of the same holder
    holder: release-team       # counts once toward a quorum
    publicKey: |               # ECDSA P-256, PEM
      -----BEGIN PUBLIC KEY-----
      …
    kms: awskms:///alias/rel   # where the private half is; for people
    accounts: ["user:0123456789abcdef"]   # which the holder pushes from: see
                               # 'assay access whoami'; a pusher cannot approve
    roles: [release]           # release provenance conformance deployment
                               # approval withdrawal
    repositories: ["credit/**"]
    notBefore: 2026-01-01T00:00:00Z
    notAfter: 2027-01-01T00:00:00Z
    distrustAfter: 2026-06-01T00:00:00Z   # the key may have been lost then
  - id: pipeline
    certificate: {authority: fulcio, issuer: "https://issuer.example", sanPattern: "https://git.example/acme/.*"}
    roles: [provenance]
    repositories: ["**"]
  authorities:
  - {id: acme, certificates: PEM}      # roots and intermediates
  - {id: clock, timestamps: PEM}       # RFC 3161: signer first, root last
  - {id: fulcio, trustedRoot: JSON}    # a Sigstore trusted_root.json
  quorums:
  - {role: approval, repositories: ["credit/**"], atLeast: 2}

Windows are held against the best evidence of when something was signed: a
timestamp of an authority above, else the log leaf that admitted it, else none;
without any, the key must be good now.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newTrustNewCommand(g), newTrustTestCommand(g), newTrustApplyCommand(g), newTrustReviewCommand(g), newTrustShowCommand(g), newTrustStatusCommand(g))
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

func readTrust(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, remedy(err, "write one with 'assay trust new'")
	}
	if _, err := verify.ParseTrust(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return raw, nil
}

func newTrustTestCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE",
		Short: "Show what would flip if a trust file were applied",
		Long: `Verify every signed statement on the server in the light of a trust file, and
show which would come out otherwise than now. Nothing is changed.

The exit status is 0 if nothing would flip, 3 if something would.`,
		Example: "  assay trust test trust.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := readTrust(args[0])
			if err != nil {
				return err
			}
			var answer pb.TestTrustResponse
			if err := g.apiLong(cmd.Context(), "POST", "trust/test", &pb.TestTrustRequest{Yaml: string(raw)}, &answer); err != nil {
				return err
			}
			rv := answer.GetReview()
			err = g.printProto(&answer, func(w io.Writer) { printReview(w, rv, "would flip") })
			if err == nil && rv.GetFlipped() > 0 {
				err = verdict(exitDenied)
			}
			return err
		},
	}
}

func printReview(w io.Writer, rv *pb.Review, flip string) {
	fmt.Fprintf(w, "trust %s: %d of the statements in %d manifests %s\n", short(rv.GetTrustDigest()), rv.GetFlipped(), rv.GetExamined(), flip)
	if len(rv.GetFlips()) == 0 {
		return
	}
	side := func(s *pb.Standing) string {
		if s.GetIdentity() != "" {
			return s.GetOutcome() + " by " + s.GetIdentity()
		}
		return s.GetOutcome()
	}
	rows := [][]string{{"STATEMENT", "ABOUT", "BEFORE", "AFTER", "WHY"}}
	for _, f := range rv.GetFlips() {
		rows = append(rows, []string{predicateName(f.GetPredicateType()), f.GetRepository() + "@" + short(f.GetSubject()), side(f.GetBefore()), side(f.GetAfter()), f.GetAfter().GetMessage()})
	}
	table(w, rows)
	if n := rv.GetFlipped() - int64(len(rv.GetFlips())); n > 0 {
		fmt.Fprintf(w, "and %d more\n", n)
	}
}

func newTrustApplyCommand(g *globals) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "apply FILE",
		Short: "Put a trust file in force on the server",
		Long: `Put a trust file in force on the server. Decisions from now on are made in its
light; its digest is in each of them and in the log. Statements that are there
are verified again in the background: what flips is shown, and is in the log as
fact.change. See first with 'assay trust test'.`,
		Example: "  assay trust apply trust.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := readTrust(args[0])
			if err != nil {
				return err
			}
			var answer pb.SetTrustResponse
			if err := g.api(cmd.Context(), "PUT", "trust", nil, &pb.SetTrustRequest{Yaml: string(raw)}, &answer); err != nil {
				return err
			}
			rv, err := g.awaitReview(cmd.Context(), answer.GetTrust().GetDigest(), wait)
			if err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				fmt.Fprintf(w, "in force: trust %s, log leaf %d\n", answer.Trust.Digest, answer.Trust.GetLogIndex())
				switch {
				case rv.GetFinishedAt() == nil:
					fmt.Fprintln(w, "statements are being verified again: assay trust review")
				default:
					printReview(w, rv, "flipped")
				}
			})
		},
	}
	c.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait for the statements to be verified again, in order to show what flipped")
	return c
}

// awaitReview returns the review of a trust file, which after wait may still
// be running.
func (g *globals) awaitReview(ctx context.Context, trust string, wait time.Duration) (*pb.Review, error) {
	for deadline := time.Now().Add(wait); ; {
		var answer pb.GetTrustReviewResponse
		err := g.api(ctx, "GET", "trust/review", nil, nil, &answer)
		var unknown *apiError
		switch {
		case errors.As(err, &unknown) && unknown.Status == http.StatusNotFound: // not begun
		case err != nil:
			return nil, err
		case answer.GetReview().GetTrustDigest() == trust && answer.GetReview().GetFinishedAt() != nil:
			return answer.GetReview(), nil
		}
		if time.Now().After(deadline) {
			return &pb.Review{TrustDigest: trust}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func newTrustReviewCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "review",
		Short:   "Show what the trust file in force flipped",
		Long:    "Show how far statements have been verified again under the trust file in force, and which came out otherwise.",
		Example: "  assay trust review",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.GetTrustReviewResponse
			if err := g.api(cmd.Context(), "GET", "trust/review", nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) {
				how := "flipped"
				if answer.GetReview().GetFinishedAt() == nil {
					how += " so far; it is not finished"
				}
				printReview(w, answer.GetReview(), how)
			})
		},
	}
}

func newTrustStatusCommand(g *globals) *cobra.Command {
	var out string
	var public bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Fetch the signed list of what is withdrawn or suspended",
		Long: `Fetch the status list: what is withdrawn or suspended, by digest, signed by the
server for some hours. A gate that decides without the server ('assay gate --offline
--status FILE') believes nothing that is in it, and no list that is out of date.

The server's key has to have the role withdrawal in the trust file:
--public-key prints it.`,
		Example: `  assay trust status --out status.json
  assay trust status --public-key > server-status.pub`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.GetStatusListResponse
			if err := g.api(cmd.Context(), "GET", "status-list", nil, nil, &answer); err != nil {
				return err
			}
			if public {
				_, err := io.WriteString(g.out, answer.GetPublicKey())
				return err
			}
			if out != "" {
				if err := os.WriteFile(out, answer.GetEnvelope(), 0o644); err != nil {
					return err
				}
			}
			return g.printProto(&answer, func(w io.Writer) {
				fmt.Fprintf(w, "%d withdrawn or suspended; valid until %s\n", answer.GetEntries(), answer.GetExpiresAt().AsTime().Format(time.RFC3339))
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "write the list into this file")
	c.Flags().BoolVar(&public, "public-key", false, "print the server's public key instead")
	return c
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
				rows := [][]string{{"IDENTITY", "KNOWN BY", "ROLES", "REPOSITORIES", "WINDOW"}}
				for _, id := range t.Identities() {
					known := "key"
					if c := id.Certificate; c != nil {
						known = c.Authority + ": " + cmp.Or(c.SAN, c.SANPattern, c.Subject)
					}
					if len(id.Accounts) > 0 {
						known += ", pushes as " + strings.Join(id.Accounts, " ")
					}
					rows = append(rows, []string{id.ID, known, fmt.Sprint(id.Roles), strings.Join(id.Repositories, " "), window(id)})
				}
				table(w, rows)
				if list := t.Authorities(); len(list) > 0 {
					rows := [][]string{{"AUTHORITY", "FOR"}}
					for _, a := range list {
						what := "a Sigstore instance"
						switch {
						case a.Certificates != "":
							what = "certificates"
						case a.Timestamps != "":
							what = "timestamps"
						}
						rows = append(rows, []string{a.ID, what})
					}
					table(w, rows)
				}
				for _, q := range t.Quorums() {
					fmt.Fprintf(w, "quorum: %d holders of the role %s in %s\n", q.AtLeast, q.Role, strings.Join(q.Repositories, " "))
				}
				fmt.Fprintf(w, "digest %s\n", t.Digest())
			})
		},
	}
}

// window is when an identity is trusted, for people.
func window(id verify.Identity) string {
	day := func(t time.Time) string { return t.Format("2006-01-02") }
	var parts []string
	if !id.NotBefore.IsZero() {
		parts = append(parts, "from "+day(id.NotBefore))
	}
	if !id.NotAfter.IsZero() {
		parts = append(parts, "until "+day(id.NotAfter))
	}
	if !id.DistrustAfter.IsZero() {
		parts = append(parts, "distrusted after "+day(id.DistrustAfter))
	}
	if parts == nil {
		return "always"
	}
	return strings.Join(parts, ", ")
}
