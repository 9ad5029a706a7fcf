package conformance

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Judge computes the report of a replay. It is pure: the same suite, plan and
// observations give the same report, to the byte, on every machine.
//
// The rules, in the order of their weight:
//
//   - REJECTED, when the environment is shown to differ: more claim cases flip
//     than the plan allows; a border case flips that is no tie; a number is
//     over its tolerance; an answer is none (an error under status 200, NaN,
//     a wrong shape or type, a missing or extra output, another version). And
//     when the record does not hold together: an observation that is
//     incomplete, or one that is missing although the replay counted it.
//   - INCONCLUSIVE, when the evidence does not reach: a case without an answer
//     at its first attempt (whatever came of later ones), a replay that did not
//     finish, a failed pre-flight, a plan that is not the suite's.
//   - CERTIFIED otherwise. There is no other way to it.
//
// So whatever is taken out of a record, the verdict does not get better.
func Judge(r *Replayed) (attest.Report, error) {
	if err := r.Suite.validate(); err != nil {
		return attest.Report{}, err
	}
	if err := r.Plan.Validate(); err != nil {
		return attest.Report{}, err
	}
	protocol, err := protocolOf(r.Plan.Target)
	if err != nil {
		return attest.Report{}, err
	}
	j := &judge{r: r, protocol: protocol, flips: map[[2]string]int{}, slices: map[string]*attest.SliceCount{}, latency: compare.NewLatency(), streamed: compare.NewLatency()}
	j.report = attest.Report{
		Reasons: []string{}, EnvironmentName: r.Plan.EnvironmentName, Environment: r.Plan.Environment,
		Model: r.Plan.Model, Suite: r.Plan.Suite, Criteria: r.Plan.Criteria,
		Plan:  attest.ResourceOf(attest.PlanType, r.PlanDigest),
		Flips: []attest.FlipCount{}, Slices: []attest.SliceCount{}, Errors: map[string]int{}, Examples: []attest.Example{},
	}
	for _, c := range r.Suite.Criteria.Outputs {
		tol := attest.NumericSummary{Output: c.Output, Noise: stats.Format(r.Suite.Document.Reference.Noise[c.Output])}
		j.numerics = append(j.numerics, numerics{summary: tol, criteria: c, tolerance: compare.Tolerance{
			Absolute: math.Max(c.Absolute, float64(c.NoiseFactor*r.Suite.Document.Reference.Noise[c.Output])),
			Relative: c.Relative,
		}})
		if c.Decision.Kind == attest.DecideNearest {
			if j.numerics[len(j.numerics)-1].embeddings, err = newEmbeddings(r.Suite, c.Output); err != nil {
				return attest.Report{}, err
			}
		}
	}
	if r.Suite.ofTexts() {
		if j.texts, err = newTexts(r.Suite); err != nil {
			return attest.Report{}, err
		}
	}
	if r.Suite.sampled() {
		if j.sampling, err = newSampling(r.Suite); err != nil {
			return attest.Report{}, err
		}
	}
	if n, clustered := r.Suite.units(); clustered && j.sampling == nil {
		j.clusters = newClusters(n)
	}
	if labelled(r.Suite.Criteria) {
		j.accuracy = newAccuracy()
	}
	for _, l := range r.Suite.Criteria.Limits {
		j.limits = append(j.limits, &limit{Limit: l})
	}
	j.fits()
	observed := make(map[string][]*attest.Observation, len(r.Observations))
	for i := range r.Observations {
		o := &r.Observations[i]
		key := o.Case
		if o.Probe != "" {
			key = probeKey(o.Probe, o.Case)
		}
		observed[key] = append(observed[key], o)
	}
	if j.second() {
		if err := j.measureNoise(observed); err != nil {
			return attest.Report{}, err
		}
	}
	if err := j.traffic(); err != nil {
		return attest.Report{}, err
	}
	if err := j.cases(observed); err != nil {
		return attest.Report{}, err
	}
	if err := j.conclude(); err != nil {
		return attest.Report{}, err
	}
	return j.report, nil
}

type judge struct {
	r        *Replayed
	protocol target.Protocol
	report   attest.Report

	numerics []numerics
	flips    map[[2]string]int
	slices   map[string]*attest.SliceCount
	flipped  int // claim cases

	// The rest is of criteria of version 2.
	limits    []*limit
	latency   *compare.Latency
	streamed  *compare.Latency // to the first token and between tokens
	scheduled bool
	noisy     bool
	distances [64][2]int // cases and flips by the bucket of their distance
	gated     bool       // all gates passed
	planned   map[string]bool
	texts     *texts // of a suite of texts

	// The rest is of criteria of version 4.
	sampling *sampling // of texts that are drawn at random
	clusters *clusters // of claim cases, if they come in some
	accuracy *accuracy // of decisions that labels can be held against
	right    bool      // what was last decided is what the label says

	against []string // it differs
	short   []string // the evidence does not reach
}

type numerics struct {
	summary           attest.NumericSummary
	criteria          attest.OutputCriteria
	tolerance         compare.Tolerance
	maxAbs, maxScaled float64
	want, got         []float64 // scores, case by case
	noise             float64   // the candidate's floor
	threads           float64   // what another number of threads changed
	total             compare.Difference
	embeddings        *embeddings // of an output that is one
}

// second reports whether the criteria are of version 2 or later, and third of 3.
func (j *judge) second() bool { return j.r.Suite.Criteria.Version >= 2 }
func (j *judge) third() bool  { return j.r.Suite.Criteria.Version >= 3 }

func (j *judge) differs(format string, a ...any) {
	j.against = append(j.against, fmt.Sprintf(format, a...))
}
func (j *judge) fallsShort(format string, a ...any) {
	j.short = append(j.short, fmt.Sprintf(format, a...))
}
func (j *judge) example(id, what, detail string) {
	if len(j.report.Examples) < 10 {
		j.report.Examples = append(j.report.Examples, attest.Example{Case: id, What: what, Detail: detail})
	}
}

// fits: the parts belong together.
func (j *judge) fits() {
	r := j.r
	if r.Plan.Cases != len(r.Suite.Cases) || r.Plan.Order != r.Suite.order() {
		j.fallsShort("the plan is for another suite")
	}
	if err := r.Suite.askable(r.Plan); err != nil {
		j.fallsShort("%v", err)
	}
	if suite, criteria, err := r.Suite.digests(); err != nil || !sameDigest(r.Plan.Suite, suite) || !sameDigest(r.Plan.Criteria, criteria) {
		j.fallsShort("the plan names another suite or other criteria")
	}
	for what, same := range map[string]bool{
		"plan": sameDigest(r.Replay.Plan, r.PlanDigest), "model": equal(r.Replay.Model, r.Plan.Model), "environment": equal(r.Replay.Environment, r.Plan.Environment),
	} {
		if !same {
			j.fallsShort("the replay is of another %s than was planned", what)
		}
	}
	if r.Environment.Name != r.Plan.EnvironmentName || r.Environment.Target != r.Plan.Target {
		j.fallsShort("the environment that was replayed is not the one that was planned")
	}
	if r.Replay.FinishedAt.IsZero() {
		j.fallsShort("the replay did not finish")
	}
	begun, err := r.begun()
	if err != nil {
		j.fallsShort("the plans do not hang together: %v", err)
	}
	if r.Replay.StartedAt.Before(begun) {
		j.fallsShort("the replay began before its plan was made")
	}
	if len(r.Replay.Preflight) == 0 {
		j.fallsShort("there was no pre-flight")
	}
	for _, c := range r.Replay.Preflight {
		if !c.Passed {
			j.fallsShort("pre-flight: %s: %s", c.Name, c.Detail)
		}
	}
	if len(r.Observations) != r.Replay.Observations {
		j.report.Cases.Damaged++
		j.differs("the record does not hold together: the replay counted %d observations and there are %d", r.Replay.Observations, len(r.Observations))
	}
	sort.Strings(j.short)
}

func sameDigest(x attest.Resource, d digest.Digest) bool {
	got, err := x.Digest.OCI()
	return err == nil && got == d
}

func equal(a, b attest.Resource) bool {
	d, err := a.Digest.OCI()
	return err == nil && sameDigest(b, d)
}

// cases looks at each case, in the suite's order.
func (j *judge) cases(byCase map[string][]*attest.Observation) error {
	count := &j.report.Cases
	for _, c := range j.r.Suite.Cases {
		if c.Stratum == attest.StratumBorder {
			count.Border++
		} else {
			count.Claim++
		}
		compared := count.Compared
		j.right = false
		j.attempts(c, byCase[c.ID])
		delete(byCase, c.ID)
		if err := j.count(c, count.Compared > compared); err != nil {
			return err
		}
	}
	for key := range byCase {
		if kind, id, isProbe := strings.Cut(key, "/"); isProbe && j.planned[kind+"/"+id] {
			delete(byCase, key)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byCase)) {
		count.Damaged++
		j.example(id, "damaged record", "there is no such case")
	}
	return nil
}

// count takes up what became of a claim case as inference counts it.
func (j *judge) count(c attest.Case, compared bool) error {
	if c.Stratum != attest.StratumClaim {
		return nil
	}
	if j.clusters != nil {
		k := j.clusters.of(c)
		k.cases++
		k.compared += boolInt(compared)
	}
	if j.accuracy == nil {
		return nil
	}
	var d decider
	if j.texts != nil {
		d = j.texts.decider
	}
	reference, known, err := j.r.Suite.rightOf(c, d)
	if known {
		j.accuracy.add(c, reference, compared && j.right, compared)
	}
	return err
}

// attempts looks at what was observed of a case.
func (j *judge) attempts(c attest.Case, list []*attest.Observation) {
	count := &j.report.Cases
	slices.SortStableFunc(list, func(a, b *attest.Observation) int { return cmp.Compare(a.Attempt, b.Attempt) })
	if len(list) == 0 {
		count.Missing++
		return
	}
	if len(list) > 1 {
		count.Retried++
	}
	interrupted := 0
	for j.second() && interrupted < len(list)-1 && list[interrupted].Error != nil && list[interrupted].Error.Class == attest.Interrupted {
		interrupted++
	}
	if interrupted > 0 {
		count.Interrupted++
	}
	request, err := requestDigest(j.r.Suite, j.protocol, c, j.r.Plan.Target)
	if err := errors.Join(err, whole(request, list)); err != nil {
		count.Damaged++
		j.example(c.ID, "damaged record", err.Error())
		return
	}
	j.first(c, list[interrupted])
}

// whole checks that the attempts at a case hold together.
func whole(request string, list []*attest.Observation) error {
	for i, o := range list {
		if err := o.Validate(); err != nil {
			return err
		}
		if o.Attempt != i+1 {
			return fmt.Errorf("attempt %d is missing", i+1)
		}
		if o.Request != request {
			return fmt.Errorf("attempt %d sent other bytes than the golden input", o.Attempt)
		}
	}
	return nil
}

// first judges the first attempt at a case.
func (j *judge) first(c attest.Case, o *attest.Observation) {
	q, _, golden := j.r.Suite.question(c, j.r.Plan.Target)
	if o.Error == nil && o.Status < 400 {
		j.timing(o)
	}
	if o.Error != nil {
		j.report.Cases.Failed++
		j.report.Errors[o.Error.Class]++
		j.example(c.ID, o.Error.Class, o.Error.Message)
		return
	}
	a, err := j.protocol.Decode(q, responseOf(o))
	var wrong *target.Wrong
	switch {
	case errors.As(err, &wrong) && wrong.Class == "http":
		j.report.Cases.Failed++
		j.report.Errors[wrong.Class]++
		j.example(c.ID, wrong.Class, wrong.Message)
		return
	case err != nil:
		j.wrong(c, cmp.Or(classOf(wrong), "malformed"), err.Error())
		return
	}
	if j.third() {
		j.pace(o, a)
	}
	if j.texts != nil {
		j.firstText(c, a)
		return
	}
	if t, ok := j.r.Suite.Texts[c.ID]; ok && t.Usage != nil {
		if what := samePrompt(t.Usage, a.Usage); what != "" {
			j.wrong(c, "prompt-tokens", what)
			return
		}
	}
	for i := range golden {
		n := slices.IndexFunc(j.numerics, func(n numerics) bool { return n.criteria.Output == golden[i].Name })
		tol := compare.Tolerance{}
		if n >= 0 {
			tol = j.numerics[n].tolerance
		}
		d := compare.Tensors(golden[i], a.Outputs[i], tol)
		if d.Fault != "" {
			class := "not-comparable"
			if j.second() {
				class = string(d.Fault)
			}
			j.wrong(c, class, d.Broken)
			return
		}
		if n < 0 {
			continue // an output that the criteria do not speak of
		}
		if c.Stratum == attest.StratumClaim {
			for _, l := range j.limits {
				if l.Output != golden[i].Name {
					continue
				}
				x, err := measure(l.Measure, j.numerics[n].criteria, golden[i], a.Outputs[i])
				if err != nil {
					j.wrong(c, "not-comparable", err.Error())
					return
				}
				j.take(l, c, x)
			}
		}
		s := &j.numerics[n]
		j.report.Cases.Elements += d.Elements
		if s.embeddings != nil {
			if err := j.embedding(c, s, golden[i], a.Outputs[i]); err != nil {
				j.wrong(c, cmp.Or(classOf(asWrong(err)), "not-comparable"), err.Error())
				return
			}
			continue
		}
		s.summary.Elements += d.Elements
		s.summary.Exceeding += d.Exceeding
		s.summary.BitsDiffer += d.BitsDiffer
		s.maxAbs, s.maxScaled = math.Max(s.maxAbs, d.MaxAbs), math.Max(s.maxScaled, d.MaxScaled)
		s.scores(golden[i], a.Outputs[i])
		s.total.Add(&d)
	}
	for i, n := range j.numerics {
		if n.embeddings != nil {
			j.nearest(c, n)
			continue
		}
		want, err1 := decide(n.criteria, golden)
		got, err2 := decide(n.criteria, a.Outputs)
		if err := errors.Join(err1, err2); err != nil {
			j.wrong(c, "not-comparable", err.Error())
			return
		}
		j.decision(c, n, want, got)
		if i == 0 && c.Label != "" {
			j.right = got.says(n.criteria.Decision, c.Label)
		}
	}
	j.report.Cases.Compared++
}

// scores keeps what is compared as a score: the element that a threshold
// looks at, or all elements of a label decision. The tensors were compared, so
// they can be decoded.
func (n *numerics) scores(want, got compare.Tensor) {
	w, err1 := want.Values()
	g, err2 := got.Values()
	if err1 != nil || err2 != nil {
		return
	}
	if d := n.criteria.Decision; d.Kind == attest.DecideThreshold {
		if d.Index >= len(w) {
			return // the decision finds it missing
		}
		w, g = w[d.Index:d.Index+1], g[d.Index:d.Index+1]
	}
	n.want, n.got = append(n.want, w...), append(n.got, g...)
}

func asWrong(err error) *target.Wrong {
	var wrong *target.Wrong
	errors.As(err, &wrong)
	return wrong
}

func classOf(w *target.Wrong) string {
	if w == nil {
		return ""
	}
	return w.Class
}

func (j *judge) wrong(c attest.Case, class, detail string) {
	j.report.Cases.Wrong++
	j.report.Errors[class]++
	j.example(c.ID, class, detail)
}

func (j *judge) decision(c attest.Case, n numerics, want, got choice) {
	from, to := want.words(n.criteria.Decision), got.words(n.criteria.Decision)
	flip := !slices.Equal(want.labels, got.labels)
	j.near(want.distance, flip)
	j.decided(c, flip, want.distance <= n.tolerance.Absolute, from, to, from+" becomes "+to)
}

// near counts a case by its distance to another decision.
func (j *judge) near(distance float64, flip bool) {
	near := &j.distances[compare.Bucket(distance)]
	near[0]++
	if flip {
		near[1]++
	}
}

// decided takes up the decision in a case. A flip of a border case is none, but
// a tie, if the reference is as near to the other decision as its noise reaches.
func (j *judge) decided(c attest.Case, flip, tie bool, from, to, detail string) {
	if c.Stratum == attest.StratumBorder {
		switch {
		case flip && tie:
			j.report.Border.Ties++
		case flip:
			j.report.Border.Flips++
			j.example(c.ID, "border case flips", detail)
		}
		return
	}
	for _, k := range slices.Sorted(maps.Keys(c.Slice)) {
		name := k + "=" + c.Slice[k]
		s := j.slices[name]
		if s == nil {
			s = &attest.SliceCount{Slice: name}
			j.slices[name] = s
		}
		s.Cases++
		if flip {
			s.Flips++
		}
	}
	if flip {
		j.flipped++
		if j.clusters != nil {
			j.clusters.flip(c)
		}
		j.flips[[2]string{from, to}]++
		j.example(c.ID, "decision flips", detail)
	}
}

// conclude turns counts into a verdict.
func (j *judge) conclude() error {
	r, plan := &j.report, j.r.Suite.Criteria.Plan
	for _, k := range slices.SortedFunc(maps.Keys(j.flips), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(j.flips[b], j.flips[a]), cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	}) {
		r.Flips = append(r.Flips, attest.FlipCount{From: k[0], To: k[1], Cases: j.flips[k]})
	}
	for _, k := range slices.Sorted(maps.Keys(j.slices)) {
		r.Slices = append(r.Slices, *j.slices[k])
	}
	exceeding := 0
	for i := range j.numerics {
		n := &j.numerics[i]
		n.summary.MaxAbsolute, n.summary.MaxScaled = stats.Format(n.maxAbs), stats.Format(n.maxScaled)
		n.summary.Tolerance = stats.Format(n.tolerance.Absolute)
		if e := n.embeddings; e != nil {
			r.Embeddings = append(r.Embeddings, e.describe(n, j.r.Suite.Document.Reference.Noise[n.criteria.Output]))
			exceeding += n.summary.Exceeding
			continue
		}
		if score, err := compare.Score(n.want, n.got); err == nil {
			n.summary.Bias = stats.Format(score.MeanDifference)
		}
		if j.second() {
			n.describe()
		}
		exceeding += n.summary.Exceeding
		r.Numerics = append(r.Numerics, n.summary)
	}
	switch {
	case j.sampling != nil:
		j.sampledTexts()
		j.decideSampled()
	case j.texts != nil:
		j.texts.describe(j)
	}
	if j.clusters != nil {
		j.clusters.describe(j)
	}
	if j.accuracy != nil && j.accuracy.summary.Cases > 0 {
		if err := j.accuracy.describe(j); err != nil {
			return err
		}
	}
	c := r.Cases
	answered, flipped, claims := j.units()
	bound := stats.UpperBound(flipped, answered, plan.Alpha)

	if c.Damaged > 0 && len(j.against) == 0 {
		j.differs("the record of %d cases does not hold together", c.Damaged)
	}
	switch {
	case flipped > plan.Allowed && j.clusters != nil:
		j.differs("decisions flip in %d of %d clusters of cases, %d are allowed", flipped, claims, plan.Allowed)
	case flipped > plan.Allowed:
		j.differs("%d of %d decisions flip, %d are allowed", flipped, claims, plan.Allowed)
	}
	if r.Border.Flips > 0 {
		j.differs("%d of %d border cases flip", r.Border.Flips, c.Border)
	}
	if c.Wrong > 0 {
		j.differs("%d of %d answers are no answers to the question (%s)", c.Wrong, c.Claim+c.Border, classes(r.Errors))
	}
	if vectors := len(r.Embeddings) > 0 && len(r.Numerics) == 0; exceeding > 0 && vectors {
		j.differs("%d of %d embeddings are further from the reference than their tolerance", exceeding, r.Embeddings[0].Vectors)
	} else if exceeding > 0 {
		j.differs("%d of %d numbers are further from the reference than their tolerance", exceeding, c.Elements)
	}
	if n := c.Missing + c.Failed; n > 0 {
		j.fallsShort("%d of %d cases got no answer at the first attempt%s", n, c.Claim+c.Border, inBrackets(classes(r.Errors)))
	}
	// We stopped, and not the environment. But whoever stops the runner often
	// enough chooses which answers count.
	if most := max(1, (c.Claim+c.Border)/20); c.Interrupted > most {
		j.fallsShort("the runner was stopped during %d cases; with more than %d the answers are not the first ones", c.Interrupted, most)
	}
	if c.Compared == 0 {
		j.fallsShort("nothing was compared")
	}
	if j.second() {
		if err := j.gates(); err != nil {
			return err
		}
		j.describe()
		if len(j.against) == 0 && len(j.short) == 0 && !j.gated {
			j.fallsShort("not every gate passed")
		}
	}
	switch {
	case len(j.against) > 0:
		r.Verdict, r.Reasons = attest.Rejected, append(j.against, j.short...)
	case len(j.short) > 0:
		r.Verdict, r.Reasons = attest.Inconclusive, j.short
	default:
		r.Verdict = attest.Certified
	}
	metric := func(name, threshold, value string, n int, passed bool) {
		r.Metrics = append(r.Metrics, attest.Metric{Name: name, Comparator: "<=", Threshold: threshold, Value: value, SampleSize: n, Passed: passed})
	}
	if x := j.sampling; x != nil {
		bound = x.upper()
		metric("upper bound on the distance of sampled texts", stats.Format(plan.Margin), stats.Format(bound), x.test.N, x.p <= plan.Alpha && bound <= plan.Margin)
	} else {
		metric(j.flipsName(), fmt.Sprint(plan.Allowed), fmt.Sprint(flipped), claims, flipped <= plan.Allowed)
		metric("upper bound on the flip rate", stats.Format(plan.Margin), stats.Format(bound), answered, bound <= plan.Margin)
	}
	metric("border cases that flip", "0", fmt.Sprint(r.Border.Flips), c.Border, r.Border.Flips == 0)
	metric("cases without a comparable answer", "0", fmt.Sprint(c.Missing+c.Failed+c.Wrong+c.Damaged), c.Claim+c.Border, c.Missing+c.Failed+c.Wrong+c.Damaged == 0)
	for _, n := range j.numerics {
		if e := n.embeddings; e != nil {
			share := math.MaxFloat64 // no distance is allowed
			if e.most == 0 {
				share = 0
			} else if n.tolerance.Absolute > 0 {
				share = math.Min(e.most/n.tolerance.Absolute, share)
			}
			metric("largest cosine distance of "+n.summary.Output+" as a share of its tolerance", "1", stats.Format(share), e.summary.Vectors, e.summary.Vectors > 0 && e.summary.Exceeding == 0)
			continue
		}
		metric("largest difference of "+n.summary.Output+" as a share of its tolerance", "1", n.summary.MaxScaled, n.summary.Elements, n.summary.Elements > 0 && n.summary.Exceeding == 0)
	}
	r.Power = attest.OperatingCharacteristics{
		Margin: stats.Format(plan.Margin), Alpha: stats.Format(plan.Alpha), Planned: plan.N, Allowed: plan.Allowed, Observed: flipped,
		UpperBound: stats.Format(bound), Beta: stats.Format(plan.Beta), DetectableRate: stats.Format(stats.Detectable(plan.N, plan.Allowed, plan.Beta)),
	}
	if x := j.sampling; x != nil {
		r.Power.DetectableRate = stats.Format(x.unseen())
	}
	// CERTIFIED needs every metric: the rules above and the metrics must not
	// drift apart.
	for _, m := range r.Metrics {
		if !m.Passed && r.Verdict == attest.Certified {
			r.Verdict = attest.Inconclusive
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s is %s, at most %s is allowed", m.Name, m.Value, m.Threshold))
		}
	}
	for _, g := range r.Gates {
		for _, h := range g.Hypotheses {
			r.Metrics = append(r.Metrics, attest.Metric{Name: metricOf(g, h), Comparator: "<=", Threshold: stats.Format(plan.Alpha), Value: h.P, SampleSize: h.N, Passed: h.Holds})
		}
	}
	r.Difference = j.words()
	r.Claim = j.claim(bound)
	return nil
}

// metricOf is the name of the metric that a hypothesis of a gate becomes.
func metricOf(g attest.Gate, h attest.Hypothesis) string { return g.Name + ": " + h.Name + ", p" }

func percent(x float64) string { return stats.Format(float64(x*100)) + " %" }

// claim is the result in one sentence.
func (j *judge) claim(bound float64) string {
	plan, reference := j.r.Suite.Criteria.Plan, j.r.Suite.Document.Model.Digest["sha256"]
	if len(reference) > 12 {
		reference = reference[:12]
	}
	against := fmt.Sprintf("the reference recorded from sha256:%s", reference)
	switch {
	case j.report.Verdict == attest.Certified && j.sampling != nil:
		x := j.sampling
		which := ""
		if len(x.names) > 1 {
			which = ", of which the nearest is " + x.called(x.summary.Nearest)
			against = strings.Replace(against, "the reference", fmt.Sprintf("one of %d references", len(x.names)), 1)
		}
		return fmt.Sprintf("texts are drawn at random from a distribution that is less than %s away from %s, with %s confidence: %s observed over %d prompts with %d samples each%s",
			format(plan.Margin), against, percent(1-plan.Alpha), format(x.test.Mean), x.test.N, x.summary.Samples, which)
	case j.report.Verdict == attest.Certified && j.clusters != nil:
		_, flipped, claims := j.units()
		return fmt.Sprintf("in at most %s of clusters of cases a decision differs from %s, with %s confidence: %d of %d observed to have one that flips",
			percent(plan.Margin), against, percent(1-plan.Alpha), flipped, claims)
	}
	switch j.report.Verdict {
	case attest.Certified:
		return fmt.Sprintf("at most %s of decisions differ from %s, with %s confidence: %d of %d observed to flip",
			percent(plan.Margin), against, percent(1-plan.Alpha), j.flipped, j.report.Cases.Claim)
	case attest.Rejected:
		return fmt.Sprintf("not equivalent to %s: %s", against, j.report.Reasons[0])
	}
	return fmt.Sprintf("no claim can be made against %s: %s", against, j.report.Reasons[0])
}

// words says what is different.
func (j *judge) words() string {
	r := &j.report
	var parts []string
	if j.flipped > 0 {
		most := r.Flips[0]
		if len(r.Flips) == 1 {
			parts = append(parts, fmt.Sprintf("%d of %d decisions flip, all of them to %s", j.flipped, r.Cases.Claim, most.To))
		} else if n := to(r.Flips, most.To); n > most.Cases || j.texts == nil && j.r.Suite.Criteria.Outputs[0].Decision.Kind == attest.DecideThreshold {
			parts = append(parts, fmt.Sprintf("%d of %d decisions flip, %d of them to %s", j.flipped, r.Cases.Claim, n, most.To))
		} else {
			parts = append(parts, fmt.Sprintf("%d of %d decisions flip, most often from %s to %s (%d)", j.flipped, r.Cases.Claim, most.From, most.To, most.Cases))
		}
	}
	if n := r.Cases.Wrong; n > 0 {
		parts = append(parts, fmt.Sprintf("%d answers are none (%s)", n, classes(r.Errors)))
	}
	if n := r.Cases.Missing + r.Cases.Failed; n > 0 {
		parts = append(parts, fmt.Sprintf("%d cases got no answer", n))
	}
	if len(parts) == 0 && j.sampling == nil {
		parts = append(parts, "no decision flips")
	}
	for _, n := range r.Numerics {
		switch {
		case n.Elements == 0:
		case n.BitsDiffer == 0:
			parts = append(parts, fmt.Sprintf("%s is the same to the bit", n.Output))
		default:
			parts = append(parts, fmt.Sprintf("%s differs by at most %s (tolerance %s)", n.Output, n.MaxAbsolute, n.Tolerance))
		}
	}
	for _, e := range r.Embeddings {
		switch {
		case e.Vectors == 0:
		case e.Vectors == e.Same:
			parts = append(parts, fmt.Sprintf("%s is the same to the bit", e.Output))
		default:
			parts = append(parts, fmt.Sprintf("%s turns by a cosine distance of at most %s (tolerance %s)", e.Output, e.MaxDistance, e.Tolerance))
		}
	}
	switch {
	case j.sampling != nil:
		parts = append(parts, j.sampling.words())
	case j.texts != nil:
		parts = append(parts, j.texts.words())
	}
	return strings.Join(parts, "; ")
}

// flipsName is what the plan counts.
func (j *judge) flipsName() string {
	if j.clusters != nil {
		return "clusters in which decisions flip"
	}
	return "decision flips"
}

// units counts what the plan is about: claim cases, or clusters of them; those that
// were answered, and those that flip.
func (j *judge) units() (answered, flipped, claims int) {
	c := j.report.Cases
	if j.clusters != nil {
		return j.clusters.count()
	}
	return max(0, c.Claim-(c.Missing+c.Failed+c.Wrong+c.Damaged)), j.flipped, c.Claim
}

// to counts the flips to one decision.
func to(flips []attest.FlipCount, label string) (n int) {
	for _, f := range flips {
		if f.To == label {
			n += f.Cases
		}
	}
	return n
}

func classes(errors map[string]int) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(errors)) {
		list = append(list, fmt.Sprintf("%s: %d", k, errors[k]))
	}
	return strings.Join(list, ", ")
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
