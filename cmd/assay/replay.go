package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

func newReplayCommand(g *globals) *cobra.Command {
	var suiteRef, env, dir, tag, sealed string
	var reports []string
	var concurrency, retries, probes, bothWays, noiseTraffic, maxRequests int
	var maxTokens int64
	var rate float64
	var timeout, maxWait time.Duration
	var noise noiseFlags
	c := &cobra.Command{
		Use:   "replay REFERENCE --suite SUITE --env NAME",
		Short: "Measure an environment with a golden suite",
		Long: `Ask an environment all questions of a suite, and push what was seen: every
attempt, with its bytes and times. The plan is pushed first, so that a replay
nobody likes cannot be left out unnoticed.

An interrupted replay goes on where it was, if it is started again with the same
--dir. Nothing is sent twice as the same attempt: a question whose answer the
runner did not live to see is recorded as that, and asked as a further attempt.

What an environment answers when it is idle says little of what it answers under
load: measure it idle, at its target --concurrency, and with --noise-traffic.

Some cases are asked again in benign ways, to see how far answers spread that
should be the same. With --noise-url they are asked at a second endpoint too,
which has to be the same but for its number of threads. A program that is asked
over exec-jsonl has it in its environment: name another one, of the same name in
another folder, which sets it and becomes the first (OMP_NUM_THREADS=2 exec
PROGRAM "$@"). What differs by more than threads may is taken for another model,
and widens no tolerance.

An environment that answers 429 or 503 with Retry-After is left alone that long,
by all questions, before anything else is asked; beyond --max-wait the replay
stops, to go on later. With --max-requests or --max-tokens it stops when that
much is used. Nothing is lost: started again with the same --dir and a larger
budget, it goes on under a new plan, which names the one that it continues.
What was asked again or held back is in the report; the verdict is on first
attempts whatever came of later ones.

The exit status is that of 'assay judge': 0 certified, 3 rejected, 4
inconclusive. It is 4 as well if the replay stopped.`,
		Example: "  assay replay credit/scorer:1.4.0 --suite credit/suite:1 --env prod-eu",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx := cmd.Context()
			defer boundMemory()()
			if dir == "" {
				temporary, err := os.MkdirTemp("", "assay-replay-")
				if err != nil {
					return err
				}
				defer func() {
					// What a replay that can go on has seen is kept.
					if !errors.Is(err, context.Canceled) && !errors.As(err, new(*conformance.Stopped)) {
						os.RemoveAll(temporary)
					}
				}()
				dir = temporary
			}
			repo, model, err := g.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			suiteRepo, suiteDesc, err := g.resolve(ctx, suiteRef)
			if err != nil {
				return err
			}
			suite, err := conformance.ReadSuite(ctx, g.fetcher(suiteRepo), suiteDesc)
			if err == nil {
				err = openSealed(suite, sealed)
			}
			if err != nil {
				return err
			}
			environment, envDesc, err := g.environment(ctx, env)
			if err != nil {
				return err
			}
			tg, err := conformance.Open(environment.Target)
			if err != nil {
				return err
			}
			if _, err := tg.Describe(ctx); err != nil {
				return remedy(fmt.Errorf("environment %s does not answer, nothing was planned: %w", env, err), "start it, or register where it is now: assay env register %s", env)
			}
			larger := func(p attest.Plan) (int, int64) {
				if cmd.Flags().Changed("max-requests") {
					p.MaxRequests = maxRequests
				}
				if cmd.Flags().Changed("max-tokens") {
					p.MaxTokens = maxTokens
				}
				return p.MaxRequests, p.MaxTokens
			}
			plan, planDesc, earlier, err := g.plan(ctx, repo, dir, model, larger, func() (attest.Plan, error) {
				criteria, err := criteriaOf(suite)
				if err != nil {
					return attest.Plan{}, err
				}
				threads, err := noise.find(ctx, environment.Target)
				if err != nil {
					return attest.Plan{}, err
				}
				return conformance.NewPlan(conformance.PlanOptions{
					Model: model.Digest, Suite: suite, SuiteDigest: suiteDesc.Digest, CriteriaDigest: criteria,
					Environment: environment, EnvironmentDigest: envDesc.Digest,
					Concurrency: concurrency, Timeout: timeout, Retries: retries, Probes: probes, Threads: threads, BothWays: bothWays, RatePerSecond: rate, NoiseTraffic: noiseTraffic,
					MaxWait: maxWait, MaxRequests: maxRequests, MaxTokens: maxTokens, Now: time.Now(),
				})
			})
			if err != nil {
				return err
			}
			// The suite's own repository may be another one: the replay's must
			// hold what the verdict is made again from.
			if suiteRepo.Reference.Repository != repo.Reference.Repository {
				a, err := suite.Artifact()
				if err != nil {
					return err
				}
				if err := g.pushDocument(ctx, repo, a); err != nil {
					return err
				}
			}
			questions, err := conformance.Questions(suite, plan)
			if err != nil {
				return err
			}
			if plan.MaxRequests > 0 && plan.MaxRequests < questions {
				g.note("the plan allows %d requests, and it has %d questions: the replay will stop before its end", plan.MaxRequests, questions)
			}
			bar := g.progress("replaying "+env, int64(questions), false)
			replay, observations, err := conformance.Replay(ctx, suite, plan, planDesc, tg, conformance.ReplayOptions{
				Dir: dir, Clock: time.Now, Progress: func(n int) { bar.Add(int64(n)) },
			})
			bar.Stop()
			if errors.Is(err, context.Canceled) {
				return remedy(err, "go on with the same --dir %s", dir)
			}
			var stopped *conformance.Stopped
			if errors.As(err, &stopped) {
				g.printError(remedy(err, "%s", onward(stopped, plan, dir)))
				return errors.Join(err, verdict(exitNoEvidence))
			}
			if err != nil {
				return err
			}
			record := &conformance.Replayed{Suite: suite, Plan: plan, PlanDigest: planDesc, Earlier: earlier, Environment: environment, Replay: replay, Observations: observations}
			a, report, err := record.Judged(model)
			if err != nil {
				return err
			}
			var tags []string
			if tag != "" {
				tags = []string{tag}
			}
			if err := g.pushDocument(ctx, repo, a, tags...); err != nil {
				return err
			}
			return g.printReport(repo.Reference.Repository+"@"+string(a.Descriptor.Digest), report, reports)
		},
	}
	f := c.Flags()
	f.StringVar(&suiteRef, "suite", "", "the suite to measure with")
	f.StringVar(&env, "env", "", "the environment to measure")
	f.StringVar(&sealed, "sealed", "", sealedUsage)
	f.StringVar(&dir, "dir", "", "keep the observations here while they are made, to go on after an interruption")
	f.StringVar(&tag, "tag", "", "a tag for the replay")
	f.IntVar(&concurrency, "concurrency", 1, "how many questions are asked at once")
	f.IntVar(&retries, "retries", 0, "ask again that often when no answer comes: recorded, never judged")
	f.Float64Var(&rate, "rate", 0, "ask so many questions a second whether or not earlier ones were answered, at most --concurrency at once; 0 is as fast as answers come")
	f.IntVar(&noiseTraffic, "noise-traffic", 0, "keep so many other questions in flight meanwhile")
	f.IntVar(&probes, "probes", 0, "how many cases are asked again to measure the environment's noise (default 32, none for criteria of version 1)")
	f.IntVar(&bothWays, "both-ways", 0, "of texts: ask so many cases streamed and whole, a further request for each, and hold the two answers against each other; all, if the suite says so")
	noise.register(f)
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	f.DurationVar(&maxWait, "max-wait", time.Minute, "how long the environment may ask to be left alone (Retry-After) before the replay stops; below 0 it is not heeded")
	f.IntVar(&maxRequests, "max-requests", 0, "stop before more requests than this: cases, further attempts, noise probes and noise traffic together; 0 is no limit")
	f.Int64Var(&maxTokens, "max-tokens", 0, "stop once the environment counted so many tokens; 0 is no limit")
	reportFlag(f, &reports)
	c.MarkFlagRequired("suite")
	c.MarkFlagRequired("env")
	return c
}

func criteriaOf(s *conformance.Suite) (digest.Digest, error) {
	raw, err := attest.Marshal(s.Criteria)
	return digest.FromBytes(raw), err
}

// replayMemory is what the runtime keeps to while it replays or judges, in bytes,
// unless what is needed at once is more. What is thrown away on the way is
// several times that.
const replayMemory = 250 << 20

// boundMemory sets that bound, unless GOMEMLIMIT has set one, and returns what
// takes it back.
func boundMemory() (restore func()) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return func() {}
	}
	debug.SetMemoryLimit(replayMemory)
	return func() { debug.SetMemoryLimit(math.MaxInt64) }
}

// onward says how a replay that stopped goes on.
func onward(s *conformance.Stopped, plan attest.Plan, dir string) string {
	switch {
	case !s.Until.IsZero():
		return fmt.Sprintf("go on after %s with the same --dir %s", s.Until.UTC().Format(time.RFC3339), dir)
	case s.Unmetered:
		return "plan again, in another --dir, with --max-requests in the place of --max-tokens"
	case plan.MaxTokens > 0 && s.Tokens >= plan.MaxTokens:
		return fmt.Sprintf("go on with the same --dir %s and a larger --max-tokens: %d are used", dir, s.Tokens)
	}
	return fmt.Sprintf("go on with the same --dir %s and a larger --max-requests: %d are used, and at least %d are needed", dir, s.Requests, s.Requests+s.Questions-s.Answered)
}

// plan pushes the plan of a replay before anything is asked, or takes up the
// one that an interrupted replay left in dir. If budget gives it another one, a
// plan is made that continues it. earlier are those it continues, the latest
// first.
func (g *globals) plan(ctx context.Context, repo *remote.Repository, dir string, model ocispec.Descriptor, budget func(attest.Plan) (requests int, tokens int64), make func() (attest.Plan, error)) (plan attest.Plan, d digest.Digest, earlier []attest.Plan, err error) {
	file := func(n int) string {
		if n == 1 {
			return filepath.Join(dir, "plan.json")
		}
		return filepath.Join(dir, fmt.Sprintf("plan-%d.json", n))
	}
	push := func() error {
		a, err := conformance.PlanArtifact(plan, model)
		if err != nil {
			return err
		}
		d = a.Descriptor.Digest
		return g.pushDocument(ctx, repo, a)
	}
	write := func(n int) error {
		raw, err := attest.Marshal(plan)
		if err != nil {
			return err
		}
		return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file(n), raw, 0o644))
	}
	n := 0
	for {
		raw, err := os.ReadFile(file(n + 1))
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		var next attest.Plan
		if err == nil {
			err = attest.Unmarshal(raw, &next)
		}
		if err != nil {
			return plan, d, nil, fmt.Errorf("%s: %w", file(n+1), err)
		}
		if n++; n > 1 {
			earlier = append([]attest.Plan{plan}, earlier...)
		}
		plan = next
		if err := push(); err != nil {
			return plan, d, nil, err
		}
	}
	switch {
	case n == 0:
		if plan, err = make(); err != nil {
			return plan, d, nil, err
		}
	default:
		requests, tokens := budget(plan)
		if requests == plan.MaxRequests && tokens == plan.MaxTokens {
			return plan, d, earlier, nil
		}
		earlier = append([]attest.Plan{plan}, earlier...)
		if plan, err = conformance.Continue(plan, d, requests, tokens, time.Now()); err != nil {
			return plan, d, nil, err
		}
	}
	if err := write(n + 1); err != nil {
		return plan, d, nil, err
	}
	return plan, d, earlier, push()
}

// printReport prints a report, writes it to files, whose endings say in which
// form, and returns the status of its verdict.
func (g *globals) printReport(replay string, r attest.Report, files []string) error {
	for _, name := range files {
		var b bytes.Buffer
		err := conformance.WriteForm(&b, strings.TrimPrefix(filepath.Ext(name), "."), r)
		if err == nil {
			err = os.WriteFile(name, b.Bytes(), 0o644)
		}
		if err != nil {
			return fmt.Errorf("writing the report to %s: %w", name, err)
		}
	}
	err := g.print(struct {
		Replay string        `json:"replay"`
		Report attest.Report `json:"report"`
	}{replay, r}, func(w io.Writer) {
		conformance.WriteReport(w, r)
		fmt.Fprintf(w, "  replay %s\n", replay)
	})
	if err != nil {
		return err
	}
	return verdict(verdictStatus(r.Verdict))
}

func verdictStatus(v attest.Verdict) int {
	switch v {
	case attest.Certified:
		return exitOK
	case attest.Rejected:
		return exitDenied
	}
	return exitNoEvidence
}

// replayed reads a replay with everything that its verdict follows from.
func (g *globals) replayed(ctx context.Context, ref, sealed string) (*remote.Repository, ocispec.Descriptor, *conformance.Replayed, []byte, error) {
	repo, desc, err := g.resolve(ctx, ref)
	if err != nil {
		return nil, desc, nil, nil, err
	}
	r, kept, err := conformance.ReadReplayed(ctx, g.fetcher(repo), desc, func(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
		return repo.Resolve(ctx, string(d))
	})
	if err == nil {
		err = openSealed(r.Suite, sealed)
	}
	return repo, desc, r, kept, err
}

func reportFlag(f *pflag.FlagSet, files *[]string) {
	f.StringArrayVar(files, "report", nil, "write the report to this file too: .html, .json, .txt, or .xml for JUnit")
}

func newJudgeCommand(g *globals) *cobra.Command {
	var reports []string
	var sealed string
	c := &cobra.Command{
		Use:   "judge REPLAY",
		Short: "Make the verdict of a replay again",
		Long: `Make the verdict of a replay again, from what was observed. Nothing is asked of
the environment. The report comes out the same to the byte, or that is an error.

The exit status is 0 for CERTIFIED, 3 for REJECTED and 4 for INCONCLUSIVE.`,
		Example: "  assay judge credit/scorer@sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			defer boundMemory()()
			repo, desc, r, kept, err := g.replayed(cmd.Context(), args[0], sealed)
			if err != nil {
				return err
			}
			report, err := conformance.Judge(r)
			if err != nil {
				return err
			}
			again, err := attest.Marshal(report)
			if err != nil {
				return err
			}
			if string(again) != string(kept) {
				return fmt.Errorf("the report that is stored with %s is not what judging it gives", args[0])
			}
			return g.printReport(repo.Reference.Repository+"@"+string(desc.Digest), report, reports)
		},
	}
	reportFlag(c.Flags(), &reports)
	c.Flags().StringVar(&sealed, "sealed", "", sealedUsage)
	return c
}

func newCertifyCommand(g *globals) *cobra.Command {
	var key, tag, sealed string
	var valid time.Duration
	c := &cobra.Command{
		Use:   "certify REPLAY",
		Short: "Judge a replay again, and sign the outcome",
		Long: `Judge a replay again, and sign the outcome: a certificate about the model if it is
CERTIFIED, else a refusal about the replay, in a form that no Sigstore client
takes for a signature of the model.

The exit status is 0 for a certificate, 3 for REJECTED and 4 for INCONCLUSIVE.`,
		Example: "  assay certify --key keys/conformance.key credit/scorer@sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			defer boundMemory()()
			k, err := loadKey(key)
			if err != nil {
				return err
			}
			repo, desc, r, kept, err := g.replayed(ctx, args[0], sealed)
			if err != nil {
				return err
			}
			report, certificate, refusal, err := conformance.Certify(r, kept, conformance.CertifyOptions{Replay: desc.Digest, Validity: valid, Now: time.Now()})
			if err != nil {
				return err
			}
			model, err := report.Model.Digest.OCI()
			if err != nil {
				return err
			}
			var ref *verify.Referrer
			if certificate != nil {
				subject, err := repo.Resolve(ctx, string(model))
				if err != nil {
					return g.explain(err, "the model")
				}
				statement, err := attest.NewStatement(model, certificate)
				if err != nil {
					return err
				}
				if ref, err = g.attachBundle(ctx, repo, subject, verify.NewSigner(k), statement, attest.PredicateCertificate); err != nil {
					return err
				}
			} else {
				statement, err := attest.NewStatement(desc.Digest, refusal)
				if err != nil {
					return err
				}
				envelope, err := verify.SignRefusal(k, statement)
				if err != nil {
					return err
				}
				if ref, err = verify.AttachRefusal(desc, envelope, time.Now()); err != nil {
					return err
				}
				if err := g.pushReferrer(ctx, repo, ref); err != nil {
					return err
				}
			}
			if tag != "" {
				if err := g.pushArtifact(ctx, repo, ref.Descriptor, ref.Manifest, nil, tag); err != nil {
					return err
				}
			}
			err = g.print(struct {
				Environment string         `json:"environment"`
				Verdict     attest.Verdict `json:"verdict"`
				Claim       string         `json:"claim"`
				Difference  string         `json:"difference"`
				Statement   digest.Digest  `json:"statement"`
				NotAfter    *time.Time     `json:"notAfter,omitempty"`
			}{report.EnvironmentName, report.Verdict, report.Claim, report.Difference, ref.Descriptor.Digest, notAfter(certificate)}, func(w io.Writer) {
				what := "refusal"
				if certificate != nil {
					what = "certificate"
				}
				fmt.Fprintf(w, "%s  %s\n  %s\n  difference: %s\n  %s %s\n", report.Verdict, report.EnvironmentName, report.Claim, report.Difference, what, ref.Descriptor.Digest)
				if t := notAfter(certificate); t != nil {
					fmt.Fprintf(w, "  valid until %s\n", t.Format(time.RFC3339))
				}
			})
			if err != nil {
				return err
			}
			return verdict(verdictStatus(report.Verdict))
		},
	}
	c.Flags().StringVar(&key, "key", "", "the private key file, of the role conformance")
	c.Flags().StringVar(&tag, "tag", "", "a tag for the certificate or refusal")
	c.Flags().StringVar(&sealed, "sealed", "", sealedUsage)
	c.Flags().DurationVar(&valid, "valid", conformance.DefaultValidity, "how long a certificate holds")
	return c
}

func notAfter(c *attest.Certificate) *time.Time {
	if c == nil {
		return nil
	}
	return &c.Validity.NotAfter
}
