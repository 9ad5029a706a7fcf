package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/oms"
)

func newVerifyCommand(g *globals) *cobra.Command {
	var trustFile, layout, modelSigning string
	var ignore []string
	c := &cobra.Command{
		Use:   "verify REFERENCE",
		Short: "Check everything that is signed about a model version",
		Long: `Read everything that is attached to a model version, in any OCI registry or, with
--layout, in a folder, and check it against a trust file. Nothing is asked of
an Assay server.

With --oms it checks instead a signature of OpenSSF Model Signing (model.sig) over
the files of the version: the digests in the manifest are compared, and only
archives are fetched. If it signs pieces of files, or by BLAKE2b or BLAKE3, all
files are.

The exit status is 0 if a release signature verifies, 3 if not.`,
		Example: `  assay verify --trust trust.yaml credit/scorer:1.4.0
  assay verify --trust trust.yaml --oms model.sig credit/scorer:1.4.0
  assay verify --trust trust.yaml --layout ./pack credit/scorer@sha256:…`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if modelSigning != "" {
				return g.verifyModel(cmd, args[0], trustFile, modelSigning, ignore)
			}
			ev, err := g.gather(cmd, args[0], trustFile, layout, "")
			if err != nil {
				return err
			}
			released := false
			for _, f := range ev.Facts {
				if _, ok := f.Verified(); ok && f.About == ev.Subject && f.PredicateType == attest.PredicateSignature {
					released = true
				}
			}
			err = g.print(struct {
				*verify.Evidence
				Released bool `json:"released"`
			}{ev, released}, func(w io.Writer) {
				rows := [][]string{{"STATEMENT", "OUTCOME", "BY", "ABOUT", "WHY"}}
				for _, f := range ev.Facts {
					rows = append(rows, []string{predicateName(f.PredicateType), f.Outcome, f.Identity, short(string(f.About)), f.Message})
				}
				table(w, rows)
				if released {
					fmt.Fprintf(w, "%s@%s is released\n", ev.Repository, ev.Subject)
				} else {
					fmt.Fprintf(w, "%s@%s is NOT released: no release signature verifies\n", ev.Repository, ev.Subject)
				}
			})
			if err == nil && !released {
				err = verdict(exitDenied)
			}
			return err
		},
	}
	c.Flags().StringVar(&trustFile, "trust", "trust.yaml", "the trust file")
	c.Flags().StringVar(&layout, "layout", "", "read from an OCI image layout in this folder")
	c.Flags().StringVar(&modelSigning, "oms", "", "check this model.sig over the files of the version")
	c.Flags().StringSliceVar(&ignore, "ignore", nil, "with --oms: paths that need not be signed")
	return c
}

// verifyModel checks a signature of OpenSSF Model Signing.
func (g *globals) verifyModel(cmd *cobra.Command, ref, trustFile, path string, ignore []string) error {
	raw, err := os.ReadFile(trustFile)
	if err != nil {
		return remedy(err, "name the trust file with --trust")
	}
	trust, err := verify.ParseTrust(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", trustFile, err)
	}
	signature, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	repo, desc, err := g.resolve(cmd.Context(), ref)
	if err != nil {
		return err
	}
	var files []oms.File
	v, err := oms.VerifySignature(signature, trust, verify.Context{Repository: repo.Reference.Repository, Now: time.Now()})
	if err == nil {
		if files, err = g.modelFiles(cmd.Context(), repo, desc, v.Hashing); err == nil {
			err = v.Check(files, ignore...)
		}
	}
	var f *verify.Failure
	if err != nil && !errors.As(err, &f) {
		return err
	}
	answer := struct {
		Subject  string        `json:"subject"`
		Outcome  string        `json:"outcome"`
		Message  string        `json:"message,omitempty"`
		Remedy   string        `json:"remedy,omitempty"`
		Identity string        `json:"identity,omitempty"`
		Files    int           `json:"files"` // or pieces of files
		Root     digest.Digest `json:"root,omitempty"`
	}{Subject: repo.Reference.Repository + "@" + string(desc.Digest), Outcome: verify.OutcomeVerified, Files: len(files)}
	if f != nil {
		answer.Outcome, answer.Message, answer.Remedy = f.Code, f.Message, f.Remedy
	} else {
		answer.Identity, answer.Root = v.Identity, v.Root
	}
	err = g.print(answer, func(w io.Writer) {
		if f != nil {
			fmt.Fprintf(w, "NOT verified: %s: %s\n", f.Code, f.Message)
			if f.Remedy != "" {
				fmt.Fprintf(w, "  what would change it: %s\n", f.Remedy)
			}
			return
		}
		what := "files"
		if v.Hashing.Shard > 0 {
			what = "pieces of files"
		}
		fmt.Fprintf(w, "verified: %s signed these %d %s\n", answer.Identity, answer.Files, what)
	})
	if err == nil && f != nil {
		err = verdict(exitDenied)
	}
	return err
}

// gather reads the evidence about a model, from its registry or from a folder.
func (g *globals) gather(cmd *cobra.Command, ref, trustFile, layout, statusFile string) (*verify.Evidence, error) {
	raw, err := os.ReadFile(trustFile)
	if err != nil {
		return nil, remedy(err, "name the trust file with --trust")
	}
	trust, err := verify.ParseTrust(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", trustFile, err)
	}
	opt := verify.GatherOptions{Trust: trust, Now: time.Now()}
	// Who states what is withdrawn has to be trusted to do so where the model
	// is, which is known below.
	withStatus := func() error {
		if statusFile == "" {
			return nil
		}
		raw, err := os.ReadFile(statusFile)
		if err != nil {
			return remedy(err, "fetch one: assay trust status --out %s", statusFile)
		}
		opt.Status, err = verify.ParseStatus(raw, trust, verify.Context{Repository: opt.Repository, Now: opt.Now})
		var f *verify.Failure
		if errors.As(err, &f) && f.Code == verify.CodeStatusStale && opt.Status != nil {
			return nil // the gate says so
		}
		if errors.As(err, &f) {
			return remedy(fmt.Errorf("%s: %w", statusFile, err), "%s", f.Remedy)
		}
		return err
	}
	if layout != "" {
		name, d, ok := strings.Cut(ref, "@")
		if !ok || digest.Digest(d).Validate() != nil {
			return nil, usagef("with --layout write REPOSITORY@DIGEST")
		}
		opt.Repository = name
		if err := withStatus(); err != nil {
			return nil, err
		}
		src, err := verify.Layout(cmd.Context(), layout)
		if err != nil {
			return nil, err
		}
		return verify.Gather(cmd.Context(), src, digest.Digest(d), opt)
	}
	repo, desc, err := g.resolve(cmd.Context(), ref)
	if err != nil {
		return nil, err
	}
	opt.Repository = repo.Reference.Repository
	if err := withStatus(); err != nil {
		return nil, err
	}
	return verify.Gather(cmd.Context(), verify.Repository(repo), desc.Digest, opt)
}

// predicateName is the short name of a predicate type.
func predicateName(uri string) string {
	switch uri {
	case attest.PredicateSignature:
		return "release"
	case attest.PredicateProvenance:
		return "provenance"
	case attest.PredicateTestResult:
		return "test result"
	case oms.Predicate, oms.PredicateV02:
		return "model.sig"
	case "":
		return "?"
	}
	parts := strings.Split(uri, "/")
	if attest.IsOurs(uri) && len(parts) > 2 {
		return parts[len(parts)-2]
	}
	return uri
}
