package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// threadParameters are the names under which servers declare how many threads
// compute an answer: the first that is there counts. The runtimes of the examples
// have the first and the second; the last is what Triton's backend for ONNX
// Runtime calls it.
var threadParameters = []string{"threads", "meta.n_threads", "n_threads", "intra_op_num_threads", "config.parameter.intra_op_thread_count"}

// declaredThreads is what a server says of its threads, 0 if it says nothing.
func declaredThreads(d target.Description) int {
	for _, name := range threadParameters {
		if n, err := strconv.Atoi(strings.Trim(d.Parameters[name], `"`)); err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// otherThreads is where the second endpoint of a plan is.
func otherThreads(t attest.Target, o attest.OtherThreads) attest.Target {
	t.URL = o.URL
	return t
}

// FindThreads looks at a target and at a second endpoint, all of which but its URL
// is as it is at the target, and says on how many threads each computes. They
// have to declare the same of everything else. own and other are what the
// operator says, 0 if nothing: it is needed where a server does not declare it,
// and must not contradict one that does.
func FindThreads(ctx context.Context, t attest.Target, url string, own, other int) (o attest.OtherThreads, err error) {
	if url == t.URL {
		return o, errors.New("the noise endpoint is the target itself: nothing would be varied")
	}
	o.URL = url
	a, err := describe(ctx, t)
	if err != nil {
		return o, err
	}
	b, err := describe(ctx, otherThreads(t, o))
	if err != nil {
		return o, fmt.Errorf("the noise endpoint %s does not answer: %w", url, err)
	}
	o.Threads = attest.Threads{Own: own, Other: other, DeclaredBy: attest.ByServer}
	for _, side := range []struct {
		where string
		n     *int
		d     target.Description
	}{{t.URL, &o.Own, a}, {url, &o.Other, b}} {
		switch declared := declaredThreads(side.d); {
		case declared == 0 && *side.n == 0:
			return o, fmt.Errorf("%s does not declare on how many threads it computes, and nobody else says so", side.where)
		case declared == 0:
			o.DeclaredBy = attest.ByOperator
		case *side.n != 0 && *side.n != declared:
			return o, fmt.Errorf("%s declares %d threads, and not %d", side.where, declared, *side.n)
		default:
			*side.n = declared
		}
	}
	if err := o.Validate(); err != nil {
		return o, err
	}
	return o, sameThreads(o.Threads, a, b)
}

func describe(ctx context.Context, t attest.Target) (target.Description, error) {
	tg, err := Open(t)
	if err != nil {
		return target.Description{}, err
	}
	defer release(tg)
	return tg.Describe(ctx)
}

// release lets go of what a target holds on to: a program, a connection.
func release(tg target.Target) {
	if c, ok := tg.(io.Closer); ok {
		c.Close()
	}
}

// sameThreads says what two endpoints declare differently, but for what a plan or
// a suite says of their threads, or nil. Whatever else differs, such as the
// precision or the file that is served, makes the second another environment, and
// what it answers no noise of the first.
func sameThreads(t attest.Threads, here, there target.Description) error {
	for _, side := range []struct {
		said int
		d    target.Description
	}{{t.Own, here}, {t.Other, there}} {
		if n := declaredThreads(side.d); n != 0 && n != side.said {
			return fmt.Errorf("%d threads were planned, and it declares %d", side.said, n)
		}
	}
	a, b := besideThreads(here), besideThreads(there)
	names := maps.Clone(a)
	maps.Copy(names, b)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a[name] != b[name] {
			return fmt.Errorf("the two endpoints are not the same but for their threads: %s is %q here and %q at the noise endpoint", name, a[name], b[name])
		}
	}
	return nil
}

// besideThreads is what a server declares, but for its threads.
func besideThreads(d target.Description) map[string]string {
	all := map[string]string{
		"server": d.Server, "server version": d.ServerVersion, "model": d.Model, "platform": d.Platform,
		"versions": strings.Join(d.Versions, ", "), "inputs": fmt.Sprint(d.Inputs), "outputs": fmt.Sprint(d.Outputs),
	}
	for k, v := range d.Parameters {
		if !slices.Contains(threadParameters, k) {
			all["parameter "+k] = v
		}
	}
	return all
}

// checkThreads is the pre-flight check of a plan that varies threads.
const checkThreads = "the noise endpoint is the same on another number of threads"

// preflightThreads makes that check.
func preflightThreads(ctx context.Context, plan attest.Plan, here target.Description) attest.PreflightCheck {
	o := *plan.Threads
	c := attest.PreflightCheck{Name: checkThreads}
	there, err := describe(ctx, otherThreads(plan.Target, o))
	if err == nil {
		err = sameThreads(o.Threads, here, there)
	}
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	c.Passed, c.Detail = true, fmt.Sprintf("%d threads instead of %d, as the %s declares", o.Other, o.Own, o.DeclaredBy)
	return c
}

// threadLimit is the most that another number of threads may change, where all
// other perturbations changed floor: the same multiple of that which the
// candidate's own noise may be of the reference's, or what the criteria call no
// difference, if that is more. A second endpoint that is of another precision is
// over it, so that it cannot widen any tolerance.
func (s *Suite) threadLimit(name string, floor float64) float64 {
	limit := math.Inf(1) // of what the criteria do not speak of
	switch {
	case s.Criteria.Text != nil && name == attest.NoiseDecision:
		limit = s.Criteria.Plan.Margin
	case s.Criteria.Text != nil && name == attest.NoiseLogprob:
		limit = s.Criteria.Text.Tie
	}
	for _, o := range s.Criteria.Outputs {
		if o.Output == name {
			limit = o.Absolute
		}
	}
	return math.Max(limit, float64(s.Criteria.Noise.Ratio*floor))
}

// threadSpread holds what another number of threads changed against its limit.
// n is how many cases were asked so. A share of decisions is over it if it is
// shown to be, at the plan's alpha: one unlucky case is no other model.
func (s *Suite) threadSpread(name string, most, floor float64, n int) (x attest.Spread, over bool) {
	limit := s.threadLimit(name, floor)
	x = attest.Spread{Of: name, Most: format(most), Limit: format(limit)}
	if s.ofTexts() && name == attest.NoiseDecision {
		most = stats.LowerBound(int(math.Round(float64(most*float64(n)))), n, s.Criteria.Plan.Alpha)
	}
	return x, !(most <= limit)
}

// checkThreads says why what a suite says of its reference's threads is no noise,
// or nil.
func (s *Suite) checkThreads() error {
	t := s.Document.Reference.Threads
	if t == nil {
		return nil
	}
	if s.Criteria.Noise == nil {
		return errors.New("suite: threads are varied from version 2 of the criteria on")
	}
	for _, name := range slices.Sorted(maps.Keys(t.Noise)) {
		if x, over := s.threadSpread(name, t.Noise[name], t.Without[name], s.Document.Reference.Measured); over {
			return fmt.Errorf("suite: noise floor of the reference: on %d instead of %d threads, %s of its answers is off by %s, and at most %s is taken for noise: the second endpoint is another model or precision, or the reference depends on its threads", t.Other, t.Own, name, x.Most, x.Limit)
		}
	}
	return nil
}

// vary measures what another number of threads changes at the reference, if the
// options name an endpoint that has it, and takes it into the suite's noise floor.
// each asks case i of n there, and says by how much its answer is off, by the
// names of the floor.
func (r *recorder) vary(s *Suite, n int, each func(there *recorder, i int) (map[string]float64, error)) error {
	if r.opt.Threads == nil {
		return nil
	}
	t := *r.opt.Threads
	tg, err := Open(otherThreads(r.opt.Target, t))
	if err != nil {
		return fmt.Errorf("the noise endpoint: %w", err)
	}
	defer release(tg)
	there := *r
	there.tg = tg
	reference := &s.Document.Reference
	made := map[string]float64{}
	for name := range reference.Noise {
		made[name] = 0
	}
	flips := 0.0
	for i := range n {
		off, err := each(&there, i)
		if err != nil {
			return fmt.Errorf("noise floor of the reference, on %d threads: %w", t.Other, err)
		}
		flips += off[attest.NoiseDecision]
		for name, x := range off {
			made[name] = math.Max(made[name], x)
		}
	}
	if s.ofTexts() {
		made[attest.NoiseDecision] = flips / float64(n)
	}
	reference.Threads = &attest.ReferenceThreads{Threads: t.Threads, Noise: made, Without: maps.Clone(reference.Noise)}
	for name, x := range made {
		reference.Noise[name] = math.Max(reference.Noise[name], x)
	}
	reference.Perturbations = append(reference.Perturbations, fmt.Sprintf("on %d instead of %d threads", t.Other, t.Own))
	return nil
}

// off is how far each of the reference's answers is from the golden one.
func (s *Suite) off(want, got []compare.Tensor) (map[string]float64, error) {
	out := map[string]float64{}
	for i := range want {
		if s.embedded(want[i].Name) {
			x, err := cosineDistance(want[i], got[i])
			if err != nil {
				return nil, err
			}
			out[want[i].Name] = x
			continue
		}
		d := compare.Tensors(want[i], got[i], compare.Tolerance{})
		if d.Broken != "" {
			return nil, errors.New(d.Broken)
		}
		out[want[i].Name] = d.MaxAbs
	}
	return out, nil
}

// varied begins what a report says of probes on another number of threads, nil if
// the plan has none.
func (j *judge) varied() *attest.ThreadCounts {
	if t := j.r.Suite.Document.Reference.Threads; t != nil {
		pair := t.Threads
		j.report.Probes.ReferenceThreads = &pair
	}
	if j.r.Plan.Threads == nil {
		return nil
	}
	c := &attest.ThreadCounts{Threads: j.r.Plan.Threads.Threads, Spreads: []attest.Spread{}, Benign: true}
	j.report.Probes.Threads = c
	if !slices.ContainsFunc(j.r.Replay.Preflight, func(c attest.PreflightCheck) bool { return c.Name == checkThreads }) {
		j.fallsShort("the pre-flight did not look whether %s", checkThreads)
	}
	return c
}

// spread takes up what another number of threads changed in this environment.
// What is over its limit is no noise: it widens nothing, and the floor was not
// measured as the plan says. It does not count against the environment, whose own
// answers are judged as they are.
func (j *judge) spread(c *attest.ThreadCounts, name string, most float64) {
	x, over := j.r.Suite.threadSpread(name, most, j.r.Suite.Document.Reference.Noise[name], c.Compared)
	c.Spreads = append(c.Spreads, x)
	if over {
		c.Benign = false
		j.fallsShort("on %d instead of %d threads, %s of the answers is off by %s, and at most %s is taken for noise: the noise endpoint is another model or precision, or the environment depends on its threads", c.Other, c.Own, name, x.Most, x.Limit)
	}
}

// threadWords say in plain words what is known of threads.
func threadWords(p attest.ProbeCounts) string {
	here := "not varied in this environment"
	if t := p.Threads; t != nil {
		here = fmt.Sprintf("%d cases asked on %d instead of %d, as the %s declares", t.Compared, t.Other, t.Own, t.DeclaredBy)
		var parts []string
		for _, s := range t.Spreads {
			words := fmt.Sprintf("%s is off by %s", s.Of, s.Most)
			if s.Limit != "inf" {
				words += fmt.Sprintf(", at most %s is taken for noise", s.Limit)
			}
			parts = append(parts, words)
		}
		if len(parts) > 0 {
			here += " (" + strings.Join(parts, "; ") + ")"
		}
	}
	reference := "not varied at the reference"
	if t := p.ReferenceThreads; t != nil {
		reference = fmt.Sprintf("varied at the reference from %d to %d", t.Own, t.Other)
	}
	words := here + "; " + reference
	if p.Threads == nil && p.ReferenceThreads == nil {
		words = "not varied, neither in this environment nor at the reference: what another number of them does to the answers is not known"
	}
	return words
}
