package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/oms"
)

// signing are the flags that say who signs, and who says when.
type signing struct {
	key, certificate, fulcio, token string
	timestamps, rekor               []string
}

func (s *signing) addFlags(f *pflag.FlagSet, role verify.Role) {
	f.StringVar(&s.key, "key", "", fmt.Sprintf("the private key of the role %s: a file, or a reference into a KMS such as awskms:///alias/NAME", role))
	f.StringVar(&s.certificate, "certificate", "", "the certificate of the key by a private authority (PEM): the signer's first, then intermediates")
	f.StringSliceVar(&s.timestamps, "timestamp", nil, "the address of an RFC 3161 timestamp authority; several are each asked")
	f.StringVar(&s.fulcio, "fulcio", "", "sign keyless: the address of a Fulcio")
	f.StringVar(&s.token, "identity-token", "", "keyless: a file with the OIDC identity token (default: the variable "+tokenVariableOIDC+")")
	f.StringSliceVar(&s.rekor, "rekor", nil, "keyless: the address of a Rekor log of version 2, or of version 1 with #v1 after it")
}

// tokenVariableOIDC is where cosign looks for the identity token.
const tokenVariableOIDC = "SIGSTORE_ID_TOKEN"

func (s *signing) signer(ctx context.Context) (signer *verify.Signer, err error) {
	switch {
	case s.fulcio != "" && (s.key != "" || s.certificate != ""):
		return nil, usagef("--fulcio makes a key and certifies it: name it without --key and --certificate")
	case s.fulcio != "":
		token := os.Getenv(tokenVariableOIDC)
		if s.token != "" {
			raw, err := os.ReadFile(s.token)
			if err != nil {
				return nil, remedy(err, "name the file with the identity token")
			}
			token = strings.TrimSpace(string(raw))
		}
		if token == "" {
			return nil, remedy(usagef("no identity token"), "name a file with --identity-token, or set %s", tokenVariableOIDC)
		}
		signer, err = verify.KeylessSigner(verify.Keyless{Fulcio: s.fulcio, Token: token, Rekor: s.rekor})
	case len(s.rekor) > 0:
		return nil, usagef("--rekor is for keyless signing: name a --fulcio")
	case verify.IsKMS(s.key):
		if signer, err = verify.KMSSigner(ctx, s.key); err != nil {
			return nil, remedy(err, "install the plugin of the KMS as sigstore-kms-NAME on the path")
		}
	default:
		var k *verify.Key
		if k, err = loadKey(s.key); err == nil {
			signer = verify.NewSigner(k)
		}
	}
	if err != nil {
		return nil, err
	}
	if s.certificate != "" {
		raw, err := os.ReadFile(s.certificate)
		if err == nil {
			err = signer.Certified(raw)
		}
		if err != nil {
			return nil, err
		}
	}
	signer.Timestamped(nil, s.timestamps...)
	return signer, nil
}

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
	var with signing
	var modelSigning string
	c := &cobra.Command{
		Use:   "sign REFERENCE",
		Short: "Release a model version: sign it",
		Long: `Sign a model version, in the form that 'cosign sign' v3 writes: a Sigstore bundle
v0.3, attached as an OCI referrer. Besides the registry only those services are
contacted that flags name: timestamp authorities, a KMS, Fulcio and Rekor.

  cosign verify --key release.pub --insecure-ignore-tlog=true HOST/REPOSITORY@DIGEST`,
		Example: `  assay sign --key keys/release.key credit/scorer:1.4.0
  assay sign --key keys/release.key --timestamp https://tsa.example/api/v1/timestamp credit/scorer:1.4.0
  assay sign --key keys/release.key --oms model.sig credit/scorer:1.4.0
  assay sign --fulcio https://fulcio.example --identity-token token.jwt --timestamp https://tsa.example credit/scorer:1.4.0`,
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
			if modelSigning != "" {
				return g.signModel(cmd.Context(), k, repo, desc, modelSigning)
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
	with.addFlags(c.Flags(), verify.Release)
	c.Flags().StringVar(&modelSigning, "oms", "", "sign the files instead, in the form of OpenSSF Model Signing: write model.sig into this file, and attach it")
	return c
}

// signModel signs the files of a model in the form of OpenSSF Model Signing.
// Layers that are bare files are not fetched.
func (g *globals) signModel(ctx context.Context, k *verify.Signer, repo *remote.Repository, desc ocispec.Descriptor, path string) error {
	files, err := g.modelFiles(ctx, repo, desc, oms.WholeFiles)
	if err != nil {
		return err
	}
	statement, err := oms.Statement(filepath.Base(repo.Reference.Repository), files)
	if err != nil {
		return err
	}
	bundle, err := k.Sign(ctx, statement)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, bundle, 0o644); err != nil {
		return err
	}
	ref, err := verify.AttachBundle(desc, bundle, oms.Predicate, time.Now())
	if err != nil {
		return err
	}
	if err := g.pushReferrer(ctx, repo, ref); err != nil {
		return err
	}
	return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), oms.Predicate, ref.Descriptor.Digest}, fmt.Sprintf("signed the %d files of", len(files)))
}

// modelFiles lists the files of a model with their digests; of archives, and of
// all if they are hashed in another way than a registry does, it reads what is
// inside.
func (g *globals) modelFiles(ctx context.Context, repo *remote.Repository, desc ocispec.Descriptor, h oms.Hashing) ([]oms.File, error) {
	body, err := g.fetch(ctx, repo, desc)
	if err != nil {
		return nil, err
	}
	return oms.FilesBy(ctx, body, h, func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		rc, err := repo.Fetch(ctx, d)
		if err != nil {
			return nil, g.explain(err, "fetching "+d.Digest.String())
		}
		return &checkedBlob{content.NewVerifyReader(rc, d), rc}, nil
	})
}

// checkedBlob is a blob whose digest is checked at its end.
type checkedBlob struct {
	*content.VerifyReader
	io.Closer
}

func (b *checkedBlob) Read(p []byte) (int, error) {
	n, err := b.VerifyReader.Read(p)
	if err == io.EOF {
		if e := b.Verify(); e != nil {
			err = e
		}
	}
	return n, err
}

// predicateNames are short names for predicate types.
var predicateNames = map[string]string{
	"lineage":    attest.PredicateLineage,
	"deployment": attest.PredicateDeployment,
	"approval":   attest.PredicateApproval,
	"provenance": attest.PredicateProvenance,
}

func newAttestCommand(g *globals) *cobra.Command {
	var with signing
	var kind, file string
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
			k, err := with.signer(cmd.Context())
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
				p, err := attest.ParsePredicate(s)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				if a, ok := p.(attest.Approval); ok && a.NameHash == "" {
					return remedy(usagef("%s: nameHash is missing: it ties the signature to a printed name (21 CFR 11.50)", file), "assay approve fills it in")
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
	with.addFlags(c.Flags(), "that the predicate needs")
	c.Flags().StringVar(&kind, "type", "", "the predicate's type")
	c.Flags().StringVar(&file, "predicate", "", "the file with the predicate (JSON)")
	c.MarkFlagRequired("type")
	return c
}

func newWithdrawCommand(g *globals) *cobra.Command {
	var with signing
	var reason, by, until string
	var lift bool
	c := &cobra.Command{
		Use:   "withdraw REFERENCE",
		Short: "Take back a model version or a certificate, for good or for a time",
		Long: `Take back a model version, or a certificate by the digest of its manifest. It
takes effect at the gate at once, for a model also at its descendants.

With --until it is a suspension, which ends by itself. A later one replaces it,
and --lift ends it now; what was withdrawn for good stays withdrawn.`,
		Example: `  assay withdraw --key keys/withdrawal.key --reason "trained on data we may not use" credit/scorer:1.4.0
  assay withdraw --key keys/withdrawal.key --reason "under review" --until 72h credit/scorer@sha256:...
  assay withdraw --key keys/withdrawal.key --reason "reviewed" --lift credit/scorer@sha256:...`,
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
			p := attest.Withdrawal{Reason: reason, WithdrawnAt: time.Now().UTC().Truncate(time.Second), StatedBy: by}
			done := "withdrawn"
			if lift || until != "" {
				// Of two suspensions the newer counts, and they may come fast.
				p.WithdrawnAt = time.Now().UTC().Truncate(time.Millisecond)
				done, p.Until = "lifted", p.WithdrawnAt
			}
			if until != "" {
				if p.Until, err = moment(until, p.WithdrawnAt); err != nil {
					return err
				}
				done = "suspended until " + p.Until.Format(time.RFC3339)
			}
			statement, err := attest.NewStatement(desc.Digest, p)
			if err != nil {
				return err
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateWithdrawal)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateWithdrawal, ref.Descriptor.Digest}, done)
		},
	}
	with.addFlags(c.Flags(), verify.Withdrawal)
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().StringVar(&by, "by", "operator", "an opaque id of who says so; no names")
	c.Flags().StringVar(&until, "until", "", "suspend it only, until a time (2026-03-01T12:00:00Z) or for a while (72h)")
	c.Flags().BoolVar(&lift, "lift", false, "end a suspension now")
	c.MarkFlagRequired("reason")
	c.MarkFlagsMutuallyExclusive("until", "lift")
	return c
}

// moment reads a time, or how long after now it is.
func moment(s string, now time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if d, e := time.ParseDuration(s); e == nil {
		t, err = now.Add(d), nil
	}
	if err != nil || !t.After(now) {
		return time.Time{}, usagef("--until is %q: write a time to come, as 2026-03-01T12:00:00Z or 72h", s)
	}
	return t.UTC(), nil
}

func newApproveCommand(g *globals) *cobra.Command {
	var with signing
	var person, meaning, reason string
	c := &cobra.Command{
		Use:   "approve REFERENCE",
		Short: "Approve a model version, as a person",
		Long: `Sign an electronic signature on a model version: who, when, with which meaning
and why (21 CFR 11.50), bound to its digest (11.70). The person has to be
enrolled with 'assay person enroll' and to hold the key in the trust file. The
statement has the opaque id and a salted hash of the name, which itself is in a
table that can be erased; the meaning, the time and the reason it has in full.

Meanings are approval, which counts where the policy requires approvals, and
review, responsibility and authorship. Who released the version, stated its
lineage, or pushed it from an account that the trust file says is theirs,
cannot approve it.`,
		Example: `  assay approve --key ann.key --person ann --reason "validated, report 17" credit/scorer:1.4.0`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := with.signer(cmd.Context())
			if err != nil {
				return err
			}
			var known pb.GetPersonResponse
			if err := g.api(cmd.Context(), "GET", "persons/"+url.PathEscape(person), nil, nil, &known); err != nil {
				return remedy(err, "an operator enrolls persons: assay person enroll %s --name NAME", person)
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			statement, err := attest.NewStatement(desc.Digest, attest.Approval{
				Person: person, NameHash: known.GetPerson().GetNameHash(), Meaning: meaning, Reason: reason, ApprovedAt: time.Now().UTC().Truncate(time.Second),
			})
			if err != nil {
				return &usageError{err}
			}
			ref, err := g.attachBundle(cmd.Context(), repo, desc, k, statement, attest.PredicateApproval)
			if err != nil {
				return err
			}
			return g.printSigned(signed{repo.Reference.Repository + "@" + string(desc.Digest), attest.PredicateApproval, ref.Descriptor.Digest}, meaning+" of")
		},
	}
	with.addFlags(c.Flags(), verify.Approval)
	c.Flags().StringVar(&person, "person", "", "your opaque id; the holder of the key in the trust file")
	c.Flags().StringVar(&meaning, "meaning", attest.MeaningApproval, "what the signature means: review, approval, responsibility or authorship")
	c.Flags().StringVar(&reason, "reason", "", "why; it is signed as it is and cannot be erased, so without names")
	c.MarkFlagRequired("person")
	c.MarkFlagRequired("reason")
	return c
}
