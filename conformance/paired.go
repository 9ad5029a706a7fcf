package conformance

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/verify/attest"
)

// resamplesOf is how many resamples a bootstrap of n clusters makes: fewer where so
// many clusters take long, and say the same.
func resamplesOf(n int, plan attest.BinomialPlan) int {
	if n > 20_000 && plan.Alpha >= 0.01 {
		return 499
	}
	return resamples
}

// unitOf names what a case is counted as by inference: its cluster, or itself.
func unitOf(c attest.Case) string {
	if c.Cluster != "" {
		return "cluster " + c.Cluster
	}
	return "case " + c.ID
}

// units counts the claim cases as inference does: those of one cluster once.
func (s *Suite) units() (n int, clustered bool) {
	seen := map[string]bool{}
	for _, c := range s.Cases {
		clustered = clustered || c.Cluster != ""
		if c.Stratum == attest.StratumClaim && (c.Cluster == "" || !seen[c.Cluster]) {
			n++
			seen[c.Cluster] = true
		}
	}
	return n, clustered
}

// clusters collects what became of claim cases that come in clusters. Answers to
// questions about one document are right or wrong together, so the plan counts
// clusters: one flips if any of its cases does, and was answered if all were.
type clusters struct {
	byUnit map[string]*cluster
}

type cluster struct {
	cases, compared, flips int
	last                   string // the case that flipped last
}

func newClusters(n int) *clusters { return &clusters{make(map[string]*cluster, n)} }

func (x *clusters) of(c attest.Case) *cluster {
	unit := unitOf(c)
	if x.byUnit[unit] == nil {
		x.byUnit[unit] = &cluster{}
	}
	return x.byUnit[unit]
}

// flip takes up a decision that flips; a case with several counts once.
func (x *clusters) flip(c attest.Case) {
	if k := x.of(c); k.last != c.ID {
		k.flips++
		k.last = c.ID
	}
}

func (x *clusters) count() (answered, flipped, all int) {
	for _, k := range x.byUnit {
		if k.compared == k.cases {
			answered++
		}
		if k.flips > 0 {
			flipped++
		}
	}
	return answered, flipped, len(x.byUnit)
}

// describe fills the report. The rate of cases has its bounds from a bootstrap
// that draws clusters.
func (x *clusters) describe(j *judge) {
	plan := j.r.Suite.Criteria.Plan
	s := &attest.ClusterSummary{FlipRate: "0", Lower: "0", Upper: "1"}
	_, s.Flipping, s.Clusters = x.count()
	sums, sizes := make([]float64, 0, len(x.byUnit)), make([]float64, 0, len(x.byUnit))
	for _, unit := range slices.Sorted(maps.Keys(x.byUnit)) {
		k := x.byUnit[unit]
		s.Cases, s.Largest = s.Cases+k.cases, max(s.Largest, k.cases)
		sums, sizes = append(sums, float64(k.flips)), append(sizes, float64(k.cases))
	}
	t, err := stats.Clustered(sums, sizes, 1, plan.Margin, plan.Alpha, plan.Beta, resamplesOf(len(sums), plan), stats.NewGenerator(string(j.r.PlanDigest), "flips by cluster"))
	if err == nil {
		s.FlipRate, s.Lower, s.Upper = format(t.Mean), format(max(0, t.Lower)), format(min(1, t.Upper))
	}
	j.report.Clusters = s
}

// means are the values of a limit as inference counts them: of cases, or the means
// of clusters.
func (j *judge) means(l *limit) []float64 {
	if j.clusters == nil {
		return l.values
	}
	sums, sizes := map[string]float64{}, map[string]float64{}
	for i, unit := range l.units {
		sums[unit] += l.values[i]
		sizes[unit]++
	}
	var list []float64
	for _, unit := range slices.Sorted(maps.Keys(sums)) {
		list = append(list, sums[unit]/sizes[unit])
	}
	return list
}

// labelled reports whether a decision can be held against labels.
func labelled(c attest.Criteria) bool {
	switch {
	case c.Version < 4:
		return false
	case c.Text != nil:
		return c.Text.Decision != attest.DecideToolCalls && c.Text.Sampled == nil
	}
	return c.Outputs[0].Decision.Kind != attest.DecideNearest
}

// rightOf reports whether the reference decides as the label of a case says; known
// is false if the case has no label, or one that is none of the decisions.
func (s *Suite) rightOf(c attest.Case, d decider) (right, known bool, err error) {
	if c.Label == "" || isClosed(c) {
		return false, false, nil
	}
	if s.ofTexts() {
		return d.right(c.Label, s.Texts[c.ID].Choices), true, nil
	}
	first := s.Criteria.Outputs[0]
	if !slices.Contains(first.Decision.Labels, c.Label) {
		return false, false, nil
	}
	_, _, golden := s.question(c, attest.Target{})
	got, err := decide(first, golden)
	return got.says(first.Decision, c.Label), true, err
}

// says reports whether a decision is what a label says: it, or one of the greatest.
func (c choice) says(d attest.Decision, label string) bool {
	return slices.ContainsFunc(c.labels, func(i int) bool { return d.Labels[i] == label })
}

// right reports whether all choices of an answer say what a label does.
func (d decider) right(label string, choices []attest.TextChoice) bool {
	for _, c := range choices {
		said := c.Text
		if d.Decision != attest.DecideText {
			answer, ok := d.read(c)
			if !ok {
				return false
			}
			said = answer
		}
		if compare.Normalize(said) == compare.Normalize(label) {
			continue
		}
		// By a pointer the answer is JSON: a label may be, too, or a string without
		// its quotes.
		if d.Pointer == "" {
			return false
		}
		if same, _, err := compare.JSON([]byte(said), []byte(label), 0); err == nil && same {
			continue
		}
		if quoted, err := attest.Marshal([]string{label}); err != nil || string(quoted) != "["+said+"]" {
			return false
		}
	}
	return len(choices) > 0
}

// accuracy collects decisions against labels, by cluster.
type accuracy struct {
	byUnit  map[string]*stats.Paired
	summary attest.AccuracySummary
}

func newAccuracy() *accuracy { return &accuracy{byUnit: map[string]*stats.Paired{}} }

// add takes up a claim case with a label.
func (a *accuracy) add(c attest.Case, reference, environment, answered bool) {
	unit := unitOf(c)
	p := a.byUnit[unit]
	if p == nil {
		p = &stats.Paired{}
		a.byUnit[unit] = p
	}
	p.Cases++
	a.summary.Cases++
	a.summary.Reference += boolInt(reference)
	a.summary.Environment += boolInt(environment)
	a.summary.Unanswered += boolInt(!answered)
	switch {
	case reference && !environment:
		p.Worse++
		a.summary.Worse++
	case environment && !reference:
		p.Better++
		a.summary.Better++
	}
}

// list is what was taken up, in an order that is always the same.
func (a *accuracy) list() []stats.Paired {
	list := make([]stats.Paired, 0, len(a.byUnit))
	for _, unit := range slices.Sorted(maps.Keys(a.byUnit)) {
		list = append(list, *a.byUnit[unit])
	}
	return list
}

// describe fills the report.
func (a *accuracy) describe(j *judge) error {
	plan, s, list := j.r.Suite.Criteria.Plan, &a.summary, a.list()
	worse, better := 0, 0
	sums, sizes := make([]float64, len(list)), make([]float64, len(list))
	for i, p := range list {
		sums[i], sizes[i] = float64(p.Worse-p.Better), float64(p.Cases)
		worse += boolInt(p.Worse > p.Better)
		better += boolInt(p.Better > p.Worse)
	}
	s.Clusters = len(list)
	s.Loss = format(float64(s.Worse-s.Better) / float64(s.Cases))
	if t, err := stats.Clustered(sums, sizes, 1, plan.Margin, plan.Alpha, plan.Beta, resamplesOf(len(sums), plan), stats.NewGenerator(string(j.r.PlanDigest), "accuracy")); err == nil {
		s.Lower, s.Upper = format(max(-1, t.Lower)), format(min(1, t.Upper))
	}
	t, err := stats.McNemar(worse, better, len(list), plan.Alpha, plan.Beta)
	if err != nil {
		return err
	}
	s.P, s.MidP, s.Unseen = format(t.P), format(t.MidP), format(t.Unseen)
	j.report.Accuracy = s
	return nil
}

// loss tests a limit on the loss of accuracy.
func (a *accuracy) loss(j *judge, margin float64) (stats.ClusterTest, error) {
	plan, list := j.r.Suite.Criteria.Plan, a.list()
	return stats.AccuracyLoss(list, margin, plan.Alpha, plan.Beta, resamplesOf(len(list), plan), stats.NewGenerator(string(j.r.PlanDigest), attest.MeasureAccuracy))
}

// checkAccuracy says why a limit on the loss of accuracy could not be shown, or
// could not be missed, whatever an environment does.
func (s *Suite) checkAccuracy() error {
	i := slices.IndexFunc(s.Criteria.Limits, func(l attest.Limit) bool { return l.Measure == attest.MeasureAccuracy })
	if i < 0 {
		return nil
	}
	margin, alpha := s.Criteria.Limits[i].Margin, s.Criteria.Plan.Alpha
	var d decider
	if s.ofTexts() {
		var err error
		if d, err = newDecider(*s.Criteria.Text); err != nil {
			return err
		}
	}
	units, cases, right := map[string]bool{}, 0, 0
	for _, c := range s.Cases {
		if c.Stratum != attest.StratumClaim || isClosed(c) {
			continue
		}
		ok, known, err := s.rightOf(c, d)
		switch {
		case err != nil:
			return fmt.Errorf("suite: case %s: %w", c.ID, err)
		case !known && c.Label != "":
			return fmt.Errorf("suite: case %s has the label %q, which is none of the decisions %s", c.ID, c.Label, strings.Join(s.Criteria.Outputs[0].Decision.Labels, ", "))
		case known:
			units[unitOf(c)] = true
			cases++
			right += boolInt(ok)
		}
	}
	if s.Closed() > 0 {
		return nil // labels may be in the sealed part
	}
	if cases == 0 {
		return fmt.Errorf("criteria: %s needs claim cases that have a label, and there is none", attest.MeasureAccuracy)
	}
	// The exact half of the test, which is all there is if nothing changes.
	if need, err := stats.SmallestN(0, margin, alpha/2); err != nil || len(units) < need {
		return errors.Join(err, fmt.Errorf("criteria: that accuracy falls by less than %s is shown with at least %d independent cases that have a label, and there are %d", stats.Format(margin), need, len(units)))
	}
	if float64(right) <= float64(margin*float64(cases)) {
		return fmt.Errorf("suite: the reference is right in %d of %d cases with a label: with a margin of %s there is nothing it could lose", right, cases, stats.Format(margin))
	}
	return nil
}

// Clusters is how many clusters claim cases are in, those without one counting as
// one each; 0 if no case names one.
func Clusters(cases []attest.Case) int {
	s := Suite{Cases: cases}
	if n, clustered := s.units(); clustered {
		return n
	}
	return 0
}

// ClustersOf is [Clusters] of what a suite is drawn from.
func ClustersOf(list []Candidate) int {
	var cases []attest.Case
	for _, c := range list {
		cases = append(cases, attest.Case{ID: c.ID, Stratum: cmp.Or(c.Stratum, attest.StratumClaim), Cluster: c.Cluster})
	}
	return Clusters(cases)
}

// ClusterBy puts cases that name no cluster into that of their slice of a key; every
// one of them has to have it. With no key nothing is changed.
func ClusterBy(list []Candidate, by string) error {
	for i := range list {
		c := &list[i]
		if by == "" || c.Cluster != "" {
			continue
		}
		if c.Cluster = c.Slice[by]; c.Cluster == "" {
			return fmt.Errorf("case %s has no slice %s, which is to be its cluster: give it one, or a cluster", c.ID, by)
		}
	}
	return nil
}

// drawUnits is [draw] for cases of which some come in clusters: so many clusters are
// drawn, each with all its cases that are not marked as border cases, and a case
// without one is its own. It tells what was drawn by stratum, as draw does.
func drawUnits[T any](all []T, seed [32]byte, claim, border int, unit func(T) string, about func(T) (id, stratum string, distance float64)) ([]T, map[string]bool, error) {
	type lot struct {
		name  string
		cases []T
	}
	var lots []*lot
	byName := map[string]*lot{}
	clustered := false
	for _, t := range all {
		id, stratum, _ := about(t)
		name := unitOf(attest.Case{ID: id, Cluster: unit(t)})
		clustered = clustered || unit(t) != ""
		if stratum == attest.StratumBorder {
			continue
		}
		if byName[name] == nil {
			byName[name] = &lot{name: name}
			lots = append(lots, byName[name])
		}
		byName[name].cases = append(byName[name].cases, t)
	}
	if !clustered {
		return draw(all, seed, claim, border, about)
	}
	if len(lots) < claim {
		return nil, nil, fmt.Errorf("%d clusters of claim cases are needed and there are %d; cases of one cluster count once", claim, len(lots))
	}
	drawn, _, err := draw(lots, seed, claim, 0, func(l *lot) (string, string, float64) { return l.name, "", 0 })
	if err != nil {
		return nil, nil, err
	}
	var chosen []T
	taken := map[string]bool{}
	for _, l := range drawn {
		for _, t := range l.cases {
			id, _, _ := about(t)
			taken[id] = true
		}
		chosen = append(chosen, l.cases...)
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(t T) bool {
		id, _, _ := about(t)
		return taken[id]
	})
	near, atBorder, err := draw(rest, seed, 0, border, about)
	if err != nil {
		return nil, nil, err
	}
	chosen = append(chosen, near...)
	slices.SortFunc(chosen, func(a, b T) int {
		idA, _, _ := about(a)
		idB, _, _ := about(b)
		return strings.Compare(idA, idB)
	})
	return chosen, atBorder, nil
}

// noClusters refuses clusters where they would not be counted as what they are.
func noClusters(list []Candidate, criteria attest.Criteria) error {
	switch {
	case ClustersOf(list) == 0:
		return nil
	case criteria.Version < 4:
		return fmt.Errorf("cases in clusters are of criteria of version 4, and these are of version %d", criteria.Version)
	case nearestOf(criteria) != "":
		return errors.New("cases in clusters cannot be judged by their nearest neighbours, which may be of their own cluster; leave cluster out")
	}
	return nil
}
