package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/verify/attest"
)

func newSuiteCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "suite",
		Short: "Record golden suites and look at them",
		Long:  "Record golden inputs, and what the reference environment answers to them, as a suite that every environment is measured with.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newSuiteNewCommand(g), newSuiteAddCommand(g), newSuiteImportCommand(g), newSuiteRecordCommand(g), newSuitePushCommand(g), newSuiteShowCommand(g))
	return c
}

type suiteOptions struct {
	cases, model, draft, seal string
	accept                    []string
	target                    targetFlags
	noiseAt                   noiseFlags
	criteriaFlags
}

// criteriaFlags say what a suite shall claim.
type criteriaFlags struct {
	classification            string
	margin, alpha, beta       float64
	allowed, border           int
	labels                    []string
	threshold                 float64
	thresholdIndex            int
	output                    string
	absolute, relative, noise float64
	ratio                     float64
	limits                    []string
	decide, answer, answerAt  string
	tie                       float64
	prompts, samples, prefix  int
	temperature               float64
	seeds, unit               string
	clusterBy                 string
	nearest, bothWays         bool
	top                       int
}

// criteriaNames are the flags, all of which a draft stands for.
var criteriaNames = []string{"classification", "margin", "alpha", "beta", "allowed", "border", "output", "labels", "threshold", "threshold-index", "absolute", "relative", "noise-factor", "noise-ratio", "limit", "decide", "answer", "answer-at", "tie", "nearest", "top-k", "prompts", "samples", "temperature", "seeds", "unit", "prefix", "cluster-by", "both-ways"}

func (o *criteriaFlags) register(f *pflag.FlagSet) {
	f.StringVar(&o.classification, "classification", "", "what the inputs are: synthetic, public, pseudonymised, …; never raw personal data")
	f.Float64Var(&o.margin, "margin", 0.01, "the flip rate that a certificate excludes; of sampled-text the distance between 0 and 2 (default 0.05)")
	f.Float64Var(&o.alpha, "alpha", 0.05, "the probability of certifying an environment at the margin")
	f.Float64Var(&o.beta, "beta", 0.2, "the probability by which the detectable rate is stated")
	f.IntVar(&o.allowed, "allowed", 0, "how many claim cases may flip")
	f.IntVar(&o.border, "border", 40, "how many border cases to add; sampled-text has none")
	f.StringVar(&o.output, "output", "probabilities", "the output that decides")
	f.StringSliceVar(&o.labels, "labels", nil, "the decisions, in the order of the output's elements; for a threshold the one below and the one above it")
	f.Float64Var(&o.threshold, "threshold", 0, "decide by comparing an element to this")
	f.IntVar(&o.thresholdIndex, "threshold-index", 1, "which element")
	f.IntVar(&o.top, "top-k", 0, "decide by which so many labels are the greatest, in whatever order")
	f.BoolVar(&o.nearest, "nearest", false, "the output is an embedding (--output, default embedding): which golden vector of another case is the nearest to it must not flip, and --absolute and --noise-factor are of the cosine distance")
	f.Float64Var(&o.absolute, "absolute", 1e-5, "absolute tolerance of numbers")
	f.Float64Var(&o.relative, "relative", 1.3e-6, "relative tolerance of numbers (default: PyTorch's for FP32)")
	f.Float64Var(&o.noise, "noise-factor", 8, "the tolerance is at least this many times the reference's noise floor")
	f.Float64Var(&o.ratio, "noise-ratio", 4, "how many times the reference's noise floor the environment's own may be")
	f.StringArrayVar(&o.limits, "limit", nil, "a further margin, MEASURE:OUTPUT=MARGIN or slow-answers=MILLISECONDS (99 % of answers come within; of streamed texts also slow-first-token and slow-token); the measures are "+strings.Join(attest.Measures, ", ")+"; of texts MEASURE=MARGIN, of "+strings.Join(attest.MeasuresOfTexts, ", "))
	f.StringVar(&o.decide, "decide", "", "the cases are requests, and this must not flip in the texts of the answers: "+strings.Join(attest.TextDecisions, ", "))
	f.StringVar(&o.answer, "answer", "", "for extracted-answer: a regular expression (RE2) with one group, which is the answer; the last match counts")
	f.StringVar(&o.answerAt, "answer-at", "", "for extracted-answer: the JSON Pointer of the answer in a text that is JSON")
	f.StringVar(&o.clusterBy, "cluster-by", "", "cases with the same value of this slice are not independent of each other: they are drawn and counted together (a case may also name its cluster)")
	f.IntVar(&o.prompts, "prompts", 40, "of sampled-text: how many prompts to draw from the cases")
	f.IntVar(&o.samples, "samples", 8, "of sampled-text: how many texts to draw for each prompt, from each reference and from the environment")
	f.Float64Var(&o.temperature, "temperature", 0, "of sampled-text: the temperature of every request (default: what each says)")
	f.StringVar(&o.seeds, "seeds", attest.SeedsEach, "of sampled-text: each, that every request has another seed, or none, that the server draws its own")
	f.StringVar(&o.unit, "unit", attest.UnitCharacters, "of sampled-text: compare texts by characters, or by tokens (requests have to ask for log probabilities)")
	f.IntVar(&o.prefix, "prefix", 0, "of sampled-text: compare so many characters or tokens from the beginning (default: all)")
	f.BoolVar(&o.bothWays, "both-ways", false, "of texts: every case is asked streamed and whole, here and in every replay, and the two answers have to be the same")
	f.Float64Var(&o.tie, "tie", 1e-3, "of texts: the lead in log probability up to which two tokens are equally likely, so that a border case that flips there is a tie")
}

// criteria computes how many claim cases the claims need.
func (o *criteriaFlags) criteria(f *pflag.FlagSet) (attest.Criteria, error) {
	if o.decide == attest.DecideSampled {
		return o.sampled(f)
	}
	for _, name := range sampledNames {
		if f.Changed(name) {
			return attest.Criteria{}, usagef("--%s is of texts that are drawn at random, which --decide %s is for", name, attest.DecideSampled)
		}
	}
	n, err := stats.SmallestN(o.allowed, o.margin, o.alpha)
	if err != nil {
		return attest.Criteria{}, usagef("%w", err)
	}
	if o.decide == "" && len(o.labels) == 0 && !o.nearest {
		return attest.Criteria{}, usagef("say what must not flip: --labels for tensors, --nearest for embeddings, --decide for texts")
	}
	decision := attest.Decision{Kind: attest.DecideLabel, Labels: o.labels}
	if f.Changed("threshold") {
		decision = attest.Decision{Kind: attest.DecideThreshold, Labels: o.labels, Index: o.thresholdIndex, Threshold: o.threshold}
	}
	if f.Changed("top-k") {
		decision = attest.Decision{Kind: attest.DecideTopK, Labels: o.labels, K: o.top}
	}
	if f.Changed("top-k") && f.Changed("threshold") {
		return attest.Criteria{}, usagef("--threshold and --top-k are two decisions; give one")
	}
	criteria := attest.Criteria{
		Version: 4, Noise: &attest.NoiseCriteria{Ratio: o.ratio},
		Outputs: []attest.OutputCriteria{{Output: o.output, Absolute: o.absolute, Relative: o.relative, NoiseFactor: o.noise, Decision: decision}},
		Plan:    attest.BinomialPlan{Margin: o.margin, Alpha: o.alpha, Beta: o.beta, N: n, Allowed: o.allowed},
	}
	if o.nearest {
		for _, name := range []string{"labels", "threshold", "threshold-index", "top-k", "relative", "decide"} {
			if f.Changed(name) {
				return attest.Criteria{}, usagef("--%s is not of embeddings, which --nearest is for", name)
			}
		}
		if !f.Changed("output") {
			criteria.Outputs[0].Output = "embedding"
		}
		criteria.Outputs[0].Relative, criteria.Outputs[0].Decision = 0, attest.Decision{Kind: attest.DecideNearest, Labels: []string{}}
	}
	if o.bothWays && o.decide == "" {
		return attest.Criteria{}, usagef("--both-ways is of texts, which --decide is for")
	}
	if o.decide != "" {
		if err := noTensors(f); err != nil {
			return attest.Criteria{}, err
		}
		criteria.Outputs = []attest.OutputCriteria{}
		criteria.Text = &attest.TextCriteria{Decision: o.decide, Pattern: o.answer, Pointer: o.answerAt, Tie: o.tie, BothWays: o.bothWays}
	}
	criteria, err = o.limited(criteria)
	if err != nil {
		return criteria, err
	}
	// As many cases as the claim on accuracy takes, too, if all have labels.
	for _, l := range criteria.Limits {
		if l.Measure != attest.MeasureAccuracy {
			continue
		}
		need, err := stats.SmallestN(0, l.Margin, o.alpha/2)
		if err != nil {
			return criteria, usagef("--limit %s: %w", l.Measure, err)
		}
		criteria.Plan.N = max(criteria.Plan.N, need)
	}
	return criteria, nil
}

// sampledNames are the flags of texts that are drawn at random.
var sampledNames = []string{"prompts", "samples", "temperature", "seeds", "unit", "prefix"}

// sampled are the criteria of texts that are drawn at random: how many prompts they
// take follows from how far the reference's texts vary, which nobody knows yet.
func (o *criteriaFlags) sampled(f *pflag.FlagSet) (attest.Criteria, error) {
	if err := noTensors(f); err != nil {
		return attest.Criteria{}, err
	}
	for _, name := range []string{"answer", "answer-at", "tie", "nearest", "allowed", "both-ways"} {
		if f.Changed(name) {
			return attest.Criteria{}, usagef("--%s is of decisions, and no text that is drawn at random is one", name)
		}
	}
	if o.clusterBy != "" {
		return attest.Criteria{}, usagef("--cluster-by: each prompt of sampled texts is a cluster of its own")
	}
	if f.Changed("border") && o.border != 0 {
		return attest.Criteria{}, usagef("--border: no text that is drawn at random is near to a decision")
	}
	o.border = 0
	if !f.Changed("margin") {
		o.margin = 0.05
	}
	return o.limited(attest.Criteria{
		Version: 4, Noise: &attest.NoiseCriteria{Ratio: o.ratio}, Outputs: []attest.OutputCriteria{},
		Text: &attest.TextCriteria{Decision: o.decide, Sampled: &attest.SampledCriteria{Samples: o.samples, Unit: o.unit, Prefix: o.prefix, Seeds: o.seeds, Temperature: o.temperature}},
		Plan: attest.BinomialPlan{Margin: o.margin, Alpha: o.alpha, Beta: o.beta, N: o.prompts},
	})
}

// noTensors refuses flags of tensors beside texts.
func noTensors(f *pflag.FlagSet) error {
	for _, name := range []string{"labels", "output", "threshold", "threshold-index", "top-k", "absolute", "relative", "noise-factor"} {
		if f.Changed(name) {
			return usagef("--%s is of tensors, and --decide of texts", name)
		}
	}
	return nil
}

// limited adds the further margins.
func (o *criteriaFlags) limited(criteria attest.Criteria) (attest.Criteria, error) {
	for _, text := range o.limits {
		l, err := parseLimit(text)
		if err != nil {
			return criteria, err
		}
		criteria.Limits = append(criteria.Limits, l)
	}
	if err := criteria.Validate(); err != nil {
		return criteria, usagef("%w", err)
	}
	return criteria, nil
}

func newSuiteRecordCommand(g *globals) *cobra.Command {
	var o suiteOptions
	c := &cobra.Command{
		Use:   "record REFERENCE",
		Short: "Record a suite from the reference environment, and push it",
		Long: `Draw cases from a file, ask the reference environment, measure its noise floor,
and push the suite under REFERENCE.

How many claim cases there are follows from the claim: with --margin 0.01 and no
flip allowed it takes 299 to exclude a flip rate of 1 % with 95 % confidence.
Border cases are those nearest to the decision: they detect, and enter no rate.

The file has a case a line: {"id":…, "inputs":{"NAME":{"datatype":"FP32",
"shape":[…], "data":[…]}}, "label":…, "slice":{…}, "cluster":…}. For texts (--decide) it has, in
the place of the inputs, "request": what is asked in the words of the protocol,
without the model. It is kept and sent as it was written. Numbers become the
nearest of their type; "outputs" that come with a case have to be what the
reference answers, within the tolerance.

Embeddings (--nearest) are golden vectors, kept as bits: of an endpoint that is
asked with requests, or of an output of tensors. What must not flip is which
vector of another claim case is the nearest, as in a search whose index the
reference made; how far a vector turns has the tolerance --absolute, as a cosine
distance, and --limit cosine-distance:embedding=… bounds the mean.

Texts that are drawn at random, at a temperature above 0 (--decide sampled-text),
need not be the same: what must not change is what they are drawn from. Of each of
--prompts cases --samples texts are asked for, every one with a seed of its own,
and others when an environment is asked; --margin is the distance that is still
the same, from 0 (one distribution) to 2 (nothing in common). With --accept an
environment may also be like a further reference, of another precision for example.

The noise floor is what asking again does, in ways that should change nothing.
With --noise-url another number of threads is one of them, at a second endpoint
of the reference. It may change no more than --noise-ratio times what the other
ways did, or than what the criteria call no difference anyway (--absolute, for
texts --tie and --margin): beyond, it is another model, and nothing is recorded.`,
		Example: `  assay suite record credit/suite:1 --model credit/scorer:1.4.0 --url http://127.0.0.1:8000 --name credit --version 1.4.0 \
      --cases cases.jsonl --labels decline,approve --threshold 0.5 --classification synthetic
  assay suite record help/suite:1 --model help/assistant:2 --protocol openai-chat --url http://127.0.0.1:8000/v1 --name assistant --version assistant-2 \
      --cases questions.jsonl --decide extracted-answer --answer 'Answer: (.*)' --classification public
  assay suite record search/suite:1 --model search/encoder:3 --protocol openai-embeddings --url http://127.0.0.1:8000/v1 --name encoder \
      --cases texts.jsonl --nearest --limit cosine-distance:embedding=0.0001 --classification public
  assay suite record help/sampled:1 --model help/assistant:2 --protocol openai-chat --url http://127.0.0.1:8000/v1 --name assistant --version assistant-2 \
      --cases questions.jsonl --decide sampled-text --temperature 0.7 --samples 10 --accept bf16=http://127.0.0.1:8001/v1 --classification public`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return recordSuite(cmd, g, args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.cases, "cases", "", "the file with the cases (JSON lines)")
	f.StringVar(&o.model, "model", "", "the model version that the reference serves")
	o.target.register(f, "name")
	o.noiseAt.register(f)
	o.criteriaFlags.register(f)
	f.StringVar(&o.seal, "seal", "", sealUsage)
	f.StringArrayVar(&o.accept, "accept", nil, "of sampled-text: a further reference that an environment may be like, NAME=URL[,MODEL[,VERSION]]; in all else as the first; repeatable")
	f.StringVar(&o.draft, "draft", "", "the folder of a draft, which has the cases and what is claimed")
	for _, name := range []string{"model", "url", "name"} {
		c.MarkFlagRequired(name)
	}
	c.MarkFlagsOneRequired("cases", "draft")
	for _, name := range append([]string{"cases"}, criteriaNames...) {
		c.MarkFlagsMutuallyExclusive("draft", name)
	}
	c.MarkFlagsRequiredTogether("cases", "classification")
	return c
}

// sources returns the cases and what is claimed: of a draft, or of a file and
// the flags.
func (o *suiteOptions) sources(f *pflag.FlagSet) (cases []conformance.Candidate, c attest.Criteria, border int, classification string, err error) {
	if o.draft != "" {
		d, cases, err := conformance.OpenDraft(o.draft)
		return cases, d.Criteria, d.Border, d.DataClassification, err
	}
	if c, err = o.criteria(f); err != nil {
		return nil, c, 0, "", err
	}
	file, err := os.Open(o.cases)
	if err != nil {
		return nil, c, 0, "", remedy(err, "name the file with --cases")
	}
	defer file.Close()
	if cases, err = conformance.ReadCandidates(file); err == nil {
		err = conformance.ClusterBy(cases, o.clusterBy)
	}
	return cases, c, o.border, o.classification, err
}

func recordSuite(cmd *cobra.Command, g *globals, ref string, o suiteOptions) error {
	ctx := cmd.Context()
	repo, tag, err := g.repository(ref)
	if err != nil {
		return err
	}
	if tag == "" {
		return usagef("%q has no tag to push to", ref)
	}
	_, model, err := g.resolve(ctx, o.model)
	if err != nil {
		return err
	}
	candidates, criteria, border, classification, err := o.sources(cmd.Flags())
	if err != nil {
		return err
	}
	reference, err := o.target.target()
	if err != nil {
		return err
	}
	tg, err := conformance.Open(reference)
	if err != nil {
		return err
	}
	opt := conformance.RecordOptions{
		Name: repo.Reference.Repository + ":" + tag, Model: attest.ResourceOf("", model.Digest), Target: reference, Candidates: candidates,
		Claim: criteria.Plan.N, Border: border, Criteria: criteria, DataClassification: classification, Clock: time.Now,
	}
	if opt.Accepted, err = o.accepted(reference); err != nil {
		return err
	}
	if err := sealable(candidates, o.seal); err != nil {
		return err
	}
	if opt.Threads, err = o.noiseAt.find(ctx, reference); err != nil {
		return err
	}
	bar := g.progress("recording", int64(opt.Requests()), false)
	opt.Progress = func(n int) { bar.Add(int64(n)) }
	suite, err := conformance.Record(ctx, tg, opt)
	bar.Stop()
	if err != nil {
		return err
	}
	if err := seal(suite, candidates, o.seal); err != nil {
		return err
	}
	a, err := suite.Artifact()
	if err != nil {
		return err
	}
	if err := g.pushDocument(ctx, repo, a, tag); err != nil {
		return err
	}
	return printSuite(g, suite, string(a.Descriptor.Digest))
}

// accepted opens further references.
func (o *suiteOptions) accepted(first attest.Target) (list []conformance.AcceptedTarget, err error) {
	for _, text := range o.accept {
		name, where, ok := strings.Cut(text, "=")
		parts := strings.Split(where, ",")
		if !ok || name == "" || parts[0] == "" || len(parts) > 3 {
			return nil, usagef("--accept %q is not NAME=URL[,MODEL[,VERSION]]", text)
		}
		at := first
		for i, to := range []*string{&at.URL, &at.Model, &at.Version} {
			if i < len(parts) {
				*to = parts[i]
			}
		}
		tg, err := conformance.Open(at)
		if err != nil {
			return nil, fmt.Errorf("--accept %s: %w", name, err)
		}
		list = append(list, conformance.AcceptedTarget{Name: name, Target: at, Reference: tg})
	}
	return list, nil
}

// parseLimit reads MEASURE:OUTPUT=MARGIN.
func parseLimit(text string) (l attest.Limit, err error) {
	what, margin, ok := strings.Cut(text, "=")
	if ok {
		l.Margin, err = strconv.ParseFloat(margin, 64)
	}
	if !ok || err != nil {
		return l, usagef("--limit %q is not MEASURE:OUTPUT=MARGIN", text)
	}
	l.Measure, l.Output, _ = strings.Cut(what, ":")
	return l, nil
}

func printSuite(g *globals, s *conformance.Suite, digest string) error {
	return g.print(struct {
		Digest   string          `json:"digest"`
		Document attest.Suite    `json:"document"`
		Criteria attest.Criteria `json:"criteria"`
		Sealed   int             `json:"sealed"`
	}{digest, s.Document, s.Criteria, s.Sealed()}, func(w io.Writer) {
		p := s.Criteria.Plan
		fmt.Fprintf(w, "suite %s\n  digest %s\n", s.Document.Name, digest)
		fmt.Fprintf(w, "  %d claim cases and %d border cases of %s data, recorded from %s version %s (%s)\n",
			s.Document.Claim, s.Document.Border, s.Document.DataClassification, s.Document.Reference.ServedModel, s.Document.Reference.ServedVersion, s.Document.Reference.Platform)
		if n := s.Sealed(); n > 0 {
			fmt.Fprintf(w, "  %d cases are sealed: a replay and whoever judges it need the sealed part (--sealed FOLDER)\n", n)
		}
		if sampled(s.Criteria) {
			for _, line := range conformance.SuiteWords(s) {
				fmt.Fprintf(w, "  %s\n", line)
			}
		} else {
			what := "decisions flip"
			if n := conformance.Clusters(s.Cases); n > 0 {
				what = "clusters of cases have a decision that flips"
			}
			fmt.Fprintf(w, "  certifies when at most %d of %d %s: excludes a rate of %s with %s confidence\n", p.Allowed, p.N, what, stats.Format(p.Margin), stats.Format(1-p.Alpha))
			fmt.Fprintf(w, "  a rate of %s or more is refused with probability %s\n", stats.Format(stats.Detectable(p.N, p.Allowed, p.Beta)), stats.Format(1-p.Beta))
		}
		for _, a := range s.Document.Accepted {
			fmt.Fprintf(w, "  or when it is like %s, recorded from %s version %s (%s)\n", a.Name, a.ServedModel, a.ServedVersion, a.Platform)
		}
		for _, l := range s.Criteria.Limits {
			fmt.Fprintf(w, "  and when %s is shown to be within %s\n", strings.TrimSpace(l.Measure+" "+l.Output), stats.Format(l.Margin))
		}
		for _, o := range s.Document.Outputs {
			raw, _ := json.Marshal(s.Document.Reference.Noise[o.Name])
			fmt.Fprintf(w, "  noise floor of %s: %s (%d cases: %s)\n", o.Name, raw, s.Document.Reference.Measured, strings.Join(s.Document.Reference.Perturbations, ", "))
		}
		for _, o := range s.Criteria.Outputs {
			if o.Decision.Kind == attest.DecideNearest {
				fmt.Fprintf(w, "  what must not flip: which golden vector of another case is the nearest to %s\n", o.Output)
			}
		}
		if t := s.Criteria.Text; t != nil && !sampled(s.Criteria) {
			if t.BothWays {
				fmt.Fprintf(w, "  every case is asked streamed and whole, and the two answers have to be the same\n")
			}
			fmt.Fprintf(w, "  what must not flip in its texts: %s\n", strings.TrimSpace(t.Decision+" "+t.Pattern+t.Pointer))
			for _, name := range attest.NoiseOfTexts {
				fmt.Fprintf(w, "  noise floor of %s: %s (%d cases: %s)\n", name, stats.Format(s.Document.Reference.Noise[name]), s.Document.Reference.Measured, strings.Join(s.Document.Reference.Perturbations, ", "))
			}
		}
	})
}

// sampled reports whether criteria are of texts that are drawn at random.
func sampled(c attest.Criteria) bool { return c.Text != nil && c.Text.Sampled != nil }

func newSuiteShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "show REFERENCE | FOLDER",
		Short: "Show a suite, or a draft of one",
		Long: `Show a suite: what it claims, how many cases it has, and the reference's noise
floor. Or a draft, by its folder: what it shall claim, what is in it, and what it
still lacks.`,
		Example: "  assay suite show credit/suite:1\n  assay suite show ./draft",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if i, err := os.Stat(args[0]); err == nil && i.IsDir() {
				d, cases, err := conformance.OpenDraft(args[0])
				if err != nil {
					return remedy(err, "assay suite new %s …", args[0])
				}
				return printDraft(g, args[0], d, cases)
			}
			repo, desc, err := g.resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s, err := conformance.ReadSuite(cmd.Context(), g.fetcher(repo), desc)
			if err != nil {
				return err
			}
			return printSuite(g, s, string(desc.Digest))
		},
	}
}
