package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/verify/attest"
)

// A signed is what the commands that sign print.
type signed struct {
	Subject       string        `json:"subject"`
	PredicateType string        `json:"predicateType"`
	Referrer      digest.Digest `json:"referrer"`
}

func (g *globals) printSigned(s signed, what string) error {
	return g.print(s, func(w io.Writer) { fmt.Fprintf(w, "%s %s: %s\n", what, s.Subject, s.Referrer) })
}

func newSignCommand(g *globals) *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "sign REFERENCE",
		Short: "Release a model version: sign it",
		Long: `Sign a model version, in the form that 'cosign sign' v3 writes: a Sigstore bundle
v0.3, attached as an OCI referrer. Nothing but the registry is contacted.

  cosign verify --key release.pub --insecure-ignore-tlog=true HOST/REPOSITORY@DIGEST`,
		Example: "  assay sign --key keys/release.key credit/scorer:1.4.0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := loadKey(key)
			if err != nil {
				return err
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			// What cosign signs: a statement with an empty predicate.
			statement, err := attest.Marshal(attest.Statement{
				Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(desc.Digest)}},
				PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
			})
			if err != nil {
				return err
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateSignature)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateSignature, ref.Descriptor.Digest}, "signed")
		},
	}
	c.Flags().StringVar(&key, "key", "", "the private key file, of the role release")
	return c
}

// predicateNames are short names for predicate types.
var predicateNames = map[string]string{
	"lineage":    attest.PredicateLineage,
	"deployment": attest.PredicateDeployment,
	"approval":   attest.PredicateApproval,
	"provenance": attest.PredicateProvenance,
}

func newAttestCommand(g *globals) *cobra.Command {
	var key, kind, file string
	c := &cobra.Command{
		Use:   "attest REFERENCE",
		Short: "Sign a statement about a model version",
		Long: `Sign a statement whose predicate is in a file, and attach it to a model version.
--type is lineage, deployment, approval, provenance, or the URI of a predicate.
Predicates of ours are checked before they are signed. Certificates are made by
'assay certify' only.`,
		Example: "  assay attest --key keys/provenance.key --type provenance --predicate slsa.json credit/scorer:1.4.0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if full, ok := predicateNames[kind]; ok {
				kind = full
			}
			if slices.Contains([]string{attest.PredicateCertificate, attest.PredicateRefusal, attest.PredicateTestResult}, kind) {
				return remedy(usagef("%s is not for writing by hand", kind), "replay and certify: assay certify REPLAY")
			}
			k, err := loadKey(key)
			if err != nil {
				return err
			}
			predicate, err := os.ReadFile(file)
			if err != nil {
				return remedy(err, "name the predicate's JSON file with --predicate")
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s := attest.Statement{
				Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(desc.Digest)}},
				PredicateType: kind, Predicate: predicate,
			}
			if attest.IsOurs(kind) {
				if _, err := attest.ParsePredicate(s); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
			}
			statement, err := attest.Marshal(s)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, kind)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), kind, ref.Descriptor.Digest}, "attested")
		},
	}
	c.Flags().StringVar(&key, "key", "", "the private key file, of the role that the predicate needs")
	c.Flags().StringVar(&kind, "type", "", "the predicate's type")
	c.Flags().StringVar(&file, "predicate", "", "the file with the predicate (JSON)")
	c.MarkFlagRequired("type")
	return c
}

func newWithdrawCommand(g *globals) *cobra.Command {
	var key, reason, by string
	c := &cobra.Command{
		Use:   "withdraw REFERENCE",
		Short: "Take back a model version or a certificate",
		Long: `Take back a model version, or a certificate by the digest of its manifest. It
takes effect at the gate at once, for a model also at its descendants.`,
		Example: `  assay withdraw --key keys/withdrawal.key --reason "trained on data we may not use" credit/scorer:1.4.0`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := loadKey(key)
			if err != nil {
				return err
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			p := attest.Withdrawal{Reason: reason, WithdrawnAt: time.Now().UTC().Truncate(time.Second), StatedBy: by}
			statement, err := attest.NewStatement(desc.Digest, p)
			if err != nil {
				return err
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateWithdrawal)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateWithdrawal, ref.Descriptor.Digest}, "withdrawn")
		},
	}
	c.Flags().StringVar(&key, "key", "", "the private key file, of the role withdrawal")
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().StringVar(&by, "by", "operator", "an opaque id of who says so; no names")
	c.MarkFlagRequired("reason")
	return c
}
