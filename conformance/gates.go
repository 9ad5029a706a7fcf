package conformance

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

func format(x float64) string {
	switch {
	case math.IsInf(x, 1):
		return "inf"
	case math.IsInf(x, -1):
		return "-inf"
	}
	return stats.Format(x)
}

// A limit collects what a limit of the criteria is judged from: one number a
// claim case.
type limit struct {
	attest.Limit
	values []float64
	units  []string // of each, if cases come in clusters

	// Of a limit on delays: answers that came, those of them within the margin,
	// and those that have no such delay, because they are of one token.
	answers, fast, without int
}

// take takes up a number of a claim case.
func (j *judge) take(l *limit, c attest.Case, x float64) {
	l.values = append(l.values, x)
	if j.clusters != nil {
		l.units = append(l.units, unitOf(c))
	}
}

// delayed says what a limit on delays is about, or "" if it is on something else.
func (l *limit) delayed() string {
	return map[string]string{
		attest.MeasureSlow: "answers", attest.MeasureFirstToken: "first tokens", attest.MeasureToken: "answers' tokens",
	}[l.Measure]
}

// at takes up a delay.
func (l *limit) at(d time.Duration) {
	l.answers++
	if d <= time.Duration(l.Margin*float64(time.Millisecond)) {
		l.fast++
	}
}

// measure computes what a limit looks at in one case.
func measure(what string, c attest.OutputCriteria, want, got compare.Tensor) (float64, error) {
	w, err := want.Values()
	if err != nil {
		return 0, err
	}
	g, err := got.Values()
	if err != nil {
		return 0, err
	}
	switch what {
	case attest.MeasureBias, attest.MeasureAbsolute:
		// The probabilities of two classes add up to one, and so have no bias
		// together: what counts is the one that decides.
		if what == attest.MeasureBias && c.Decision.Kind == attest.DecideThreshold {
			if c.Decision.Index >= len(w) {
				return 0, fmt.Errorf("there is no element %d among %d", c.Decision.Index, len(w))
			}
			w, g = w[c.Decision.Index:c.Decision.Index+1], g[c.Decision.Index:c.Decision.Index+1]
		}
		sum := 0.0
		for i := range w {
			d := g[i] - w[i]
			if what == attest.MeasureAbsolute {
				d = math.Abs(d)
			}
			sum += d
		}
		return sum / float64(len(w)), nil
	case attest.MeasureVariation, attest.MeasureHellinger, attest.MeasureJS, attest.MeasureKL:
		d, err := compare.Probabilities(w, g, 1e-3)
		return map[string]float64{
			attest.MeasureVariation: d.Variation, attest.MeasureHellinger: d.Hellinger, attest.MeasureJS: d.JS, attest.MeasureKL: d.KL,
		}[what], err
	case attest.MeasureCosine:
		e, err := compare.Embeddings(w, g)
		return 1 - e.Cosine, err
	case attest.MeasureNorm:
		e, err := compare.Embeddings(w, g)
		return math.Abs(e.Norm - 1), err
	}
	return 0, fmt.Errorf("measure %q is unknown", what)
}

// slowShare is how many answers may be slower than the limit on them.
const slowShare = 0.01

// gates builds the families of hypotheses and tests them, in an order that is
// fixed: a contract that is broken makes numbers meaningless, and numbers that
// are off make decisions that happen to agree a coincidence.
func (j *judge) gates() error {
	r, plan := &j.report, j.r.Suite.Criteria.Plan
	contract := attest.Gate{Name: "contract"}
	numerics := attest.Gate{Name: "numerics"}
	decisions := attest.Gate{Name: "decisions"}
	speed := attest.Gate{Name: "latency"}
	var p [4][]float64

	// What is counted and not estimated holds or does not.
	exact := func(i int, g *attest.Gate, name string, found, of int) {
		h := attest.Hypothesis{Name: name, Margin: "0", Value: fmt.Sprint(found), Bound: fmt.Sprint(found), N: of, Unseen: "0"}
		x := 0.0
		if found > 0 || of == 0 {
			x = 1
		}
		g.Hypotheses, p[i] = append(g.Hypotheses, h), append(p[i], x)
	}
	estimated := func(i int, g *attest.Gate, name, value string, plan stats.Plan, bound, x float64) {
		h := attest.Hypothesis{Name: name, Margin: format(plan.Margin), Value: value, Bound: format(bound), N: plan.N, Unseen: format(plan.Unseen)}
		g.Hypotheses, p[i] = append(g.Hypotheses, h), append(p[i], x)
	}
	c := r.Cases
	all := c.Claim + c.Border
	exact(0, &contract, "cases without a comparable answer", c.Missing+c.Failed+c.Wrong+c.Damaged, all)
	if t := j.texts; t != nil && t.summary.BothWays != nil {
		w := t.summary.BothWays
		exact(0, &contract, "cases answered otherwise streamed than whole", w.Planned-w.Same, w.Planned)
	}
	if r.Probes != nil {
		exact(1, &numerics, "noise probes without an answer", r.Probes.Failed, r.Probes.Planned)
	}
	if r.Probes != nil && r.Probes.Threads != nil {
		over := 0
		if !r.Probes.Threads.Benign {
			over = 1
		}
		exact(1, &numerics, "answers on another number of threads that are no noise", over, r.Probes.Threads.Compared)
	}
	for _, n := range j.numerics {
		if e := n.embeddings; e != nil {
			exact(1, &numerics, "embeddings of "+n.summary.Output+" over their tolerance", e.summary.Exceeding, e.summary.Vectors)
			continue
		}
		exact(1, &numerics, "numbers of "+n.summary.Output+" over their tolerance", n.summary.Exceeding, n.summary.Elements)
	}
	noisy := 0
	if j.noisy {
		noisy = 1
	}
	switch {
	case j.sampling != nil:
		numerics.Name = "texts"
		exact(1, &numerics, "prompts of another number of tokens", j.texts.prompts, all)
	case j.texts == nil:
		exact(1, &numerics, "outputs that are noisier than the reference", noisy, len(j.numerics))
	default:
		numerics.Name = "texts"
		exact(1, &numerics, "decisions that change more often than the reference's when asked again", noisy, r.Probes.Used)
		exact(1, &numerics, "prompts of another number of tokens", j.texts.prompts, all)
	}
	shown := plan.Alpha / float64(max(1, len(j.limits))) // for saying that a limit is broken
	for _, l := range j.limits {
		name := l.Measure
		if l.Output != "" {
			name += " of " + l.Output
		}
		if of := l.delayed(); of != "" {
			n := all - l.without
			slow := n - l.fast // an answer that never came is not fast
			allowed := n
			for allowed >= 0 && !stats.Keeps(n, allowed, slowShare, plan.Alpha) {
				allowed--
			}
			test := stats.BinomialPlan(n, max(allowed, 0), slowShare, plan.Alpha, plan.Beta)
			estimated(3, &speed, fmt.Sprintf("%s, over %s ms", name, format(l.Margin)), fmt.Sprint(slow), test, stats.UpperBound(slow, n, plan.Alpha), stats.RateP(slow, n, slowShare))
			switch {
			case stats.LowerBound(l.answers-l.fast, l.answers, shown) > slowShare:
				j.differs("%d of %d %s took more than %s ms", l.answers-l.fast, l.answers, of, format(l.Margin))
			case stats.RateP(slow, n, slowShare) > plan.Alpha:
				j.fallsShort("it is not shown that 99 %% of %s come within %s ms: %d of %d took longer or never came", of, format(l.Margin), slow, n)
			}
			continue
		}
		if l.Measure == attest.MeasureAccuracy {
			t, err := j.accuracy.loss(j, l.Margin)
			if err != nil {
				j.fallsShort("%s cannot be judged: %v", name, err)
				exact(2, &decisions, name, 1, len(j.accuracy.byUnit))
				continue
			}
			estimated(2, &decisions, name, format(t.Mean), t.Plan, t.Upper, t.P)
			switch {
			case t.Beyond <= shown:
				j.differs("accuracy falls by %s of the cases that have a label, less than %s is allowed", format(t.Mean), format(l.Margin))
			case !t.Passed:
				j.fallsShort("it is not shown that accuracy falls by less than %s: it falls by %s, and by up to %s with %s confidence", format(l.Margin), format(t.Mean), format(t.Upper), percent(1-plan.Alpha))
			}
			continue
		}
		test := stats.NonInferiority
		if l.Measure == attest.MeasureBias {
			test = stats.Equivalence
		}
		m, err := test(j.means(l), l.Margin, plan.Alpha, plan.Beta)
		if err != nil {
			j.fallsShort("%s cannot be judged: %v", name, err)
			exact(1, &numerics, name, 1, len(l.values))
			continue
		}
		bound := m.Upper
		if l.Measure == attest.MeasureBias {
			bound = math.Max(math.Abs(m.Lower), math.Abs(m.Upper))
		}
		estimated(1, &numerics, name, format(m.Mean), m.Plan, bound, m.P)
		switch {
		case m.Beyond <= shown:
			j.differs("the %s is %s, at most %s is allowed", name, format(m.Mean), format(l.Margin))
		case !m.Passed:
			j.fallsShort("it is not shown that the %s is within %s: it is %s, and up to %s with %s confidence", name, format(l.Margin), format(m.Mean), format(bound), percent(1-plan.Alpha))
		}
	}
	if x := j.sampling; x != nil {
		decisions.Name = "distributions"
		name := "distance of sampled texts from " + x.name()
		if x.err != nil {
			exact(2, &decisions, name, 1, len(x.byPrompt))
		} else {
			estimated(2, &decisions, name, format(x.test.Mean), x.test.Plan, x.test.Upper, x.p)
		}
		alike := boolInt(x.alike != "")
		exact(2, &decisions, "texts that were not drawn anew", alike, len(x.byPrompt))
	} else {
		answered, flipped, _ := j.units()
		estimated(2, &decisions, j.flipsName(), fmt.Sprint(flipped), stats.BinomialPlan(answered, min(plan.Allowed, answered), plan.Margin, plan.Alpha, plan.Beta),
			stats.UpperBound(flipped, answered, plan.Alpha), stats.RateP(flipped, answered, plan.Margin))
	}
	if c.Border > 0 {
		exact(2, &decisions, "border cases that flip", r.Border.Flips, c.Border)
	}
	list := []attest.Gate{contract, numerics, decisions}
	if len(speed.Hypotheses) > 0 {
		list = append(list, speed)
	}
	families := make([]stats.Gate, len(list))
	for i, g := range list {
		families[i].Name = g.Name
		for k, h := range g.Hypotheses {
			families[i].Hypotheses = append(families[i].Hypotheses, stats.Hypothesis{Name: h.Name, P: p[i][k]})
		}
	}
	outcomes, err := stats.FixedSequence(families, plan.Alpha)
	if err != nil {
		return err
	}
	for i, o := range outcomes {
		g := &list[i]
		g.Tested, g.Passed = o.Tested, o.Passed
		for k := range g.Hypotheses {
			h := &g.Hypotheses[k]
			h.P, h.Adjusted = format(p[i][k]), "not tested"
			if o.Tested {
				h.Adjusted = format(o.Adjusted[k])
				h.Holds = o.Adjusted[k] <= plan.Alpha
			}
		}
	}
	r.Gates = list
	j.gated = !slices.ContainsFunc(list, func(g attest.Gate) bool { return !g.Passed })
	return nil
}

// due is when a question should have been sent.
func (j *judge) due(o *attest.Observation) time.Time {
	if o.DueAt == nil {
		return o.SentAt
	}
	j.scheduled = true
	return *o.DueAt
}

// timing takes up when an answer came.
func (j *judge) timing(o *attest.Observation) {
	due := j.due(o)
	j.latency.Add(compare.Timing{Intended: due, First: o.ReceivedAt, Last: o.ReceivedAt})
	for _, l := range j.limits {
		if l.Measure == attest.MeasureSlow {
			l.at(o.ReceivedAt.Sub(due))
		}
	}
}

// pace takes up when the pieces of a streamed text came. Servers put several
// tokens into a piece as they like, so tokens are those that were counted, if
// they were. A text without any piece is there when its answer is whole.
func (j *judge) pace(o *attest.Observation, a *target.Answer) {
	if len(o.Arrivals) == 0 || len(a.Choices) == 0 {
		return
	}
	due, tokens := j.due(o), a.Timing.Pieces
	if a.Usage != nil && a.Usage.Completion > 0 {
		tokens = a.Usage.Completion
	}
	first, last := o.SentAt.Add(a.Timing.First), o.SentAt.Add(a.Timing.Last)
	if a.Timing.Pieces == 0 {
		first, last, tokens = o.ReceivedAt, o.ReceivedAt, 0
	}
	j.streamed.Add(compare.Timing{Intended: due, First: first, Last: last, Tokens: tokens})
	for _, l := range j.limits {
		switch {
		case l.Measure == attest.MeasureFirstToken:
			l.at(first.Sub(due))
		case l.Measure == attest.MeasureToken && tokens < 2:
			l.without++
		case l.Measure == attest.MeasureToken:
			l.at(last.Sub(first) / time.Duration(tokens-1))
		}
	}
}

// describe fills what a summary of version 2 says of an output.
func (n *numerics) describe() {
	s := &n.summary
	s.MaxULP, s.Cosine, s.SNR = fmt.Sprint(n.total.MaxULP), format(n.total.Cosine()), format(n.total.SNR())
	for b, count := range n.total.Histogram {
		if count > 0 {
			s.Histogram = append(s.Histogram, attest.Bin{From: format(compare.From(b)), Count: int(count)})
		}
	}
}

// describe fills what a report of version 2 says beyond the verdict.
func (j *judge) describe() {
	r := &j.report
	for b := range j.distances {
		if d := j.distances[b]; d[0] > 0 {
			r.Distances = append(r.Distances, attest.DistanceCount{From: format(compare.From(b)), Cases: d[0], Flips: d[1]})
		}
	}
	if h := j.latency.Whole; h.TotalCount() > 0 {
		l := &attest.Latency{
			P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99), Max: h.Max(),
			Answers: int(h.TotalCount()), Schedule: j.scheduled,
		}
		l.Bins = bins(h)
		l.FirstToken, l.PerToken = delays(j.streamed.First), delays(j.streamed.PerToken)
		r.Latency = l
	}
}

// bins counts delays by powers of two microseconds. The buckets of [compare] are
// not for these: they are made for small differences, and end at 2^14.
func bins(h *hdrhistogram.Histogram) (list []attest.Bin) {
	var counts [64]int
	zero := 0
	for _, bar := range h.Distribution() {
		if bar.From <= 0 {
			zero += int(bar.Count)
		} else {
			counts[bits.Len64(uint64(bar.From))-1] += int(bar.Count)
		}
	}
	if zero > 0 {
		list = append(list, attest.Bin{From: "0", Count: zero})
	}
	for b, n := range counts {
		if n > 0 {
			list = append(list, attest.Bin{From: format(float64(uint64(1) << b)), Count: n})
		}
	}
	return list
}

// delays says what was measured, nil if nothing was.
func delays(h *hdrhistogram.Histogram) *attest.Delays {
	if h.TotalCount() == 0 {
		return nil
	}
	return &attest.Delays{
		P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99), Max: h.Max(), Answers: int(h.TotalCount()), Bins: bins(h),
	}
}
