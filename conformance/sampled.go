package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Texts that are drawn at random are asked for as often as there are to be
// samples: each sample is a case of its own, or the choices of one are several,
// and the cases of a prompt share its id as their cluster. So all that holds of
// cases holds of samples: every attempt is recorded, the first one counts, and a
// replay that was stopped goes on.
//
// Two runs of one program with one seed draw the same texts, and would look more
// alike than the distributions are. So each sample has a seed of its own, and
// another one when the environment is asked than when a reference was; and where
// a server has a mind of its own about seeds, texts that are too much alike are no
// evidence (see sampling.alike).

// An AcceptedTarget is a further reference to record sampled texts from.
type AcceptedTarget struct {
	Name      string
	Target    attest.Target
	Reference target.Target
}

// sampled reports whether the cases are samples of prompts.
func (s *Suite) sampled() bool { return s.Criteria.Text != nil && s.Criteria.Text.Sampled != nil }

// whoEnvironment is asked with its own seeds, and so is each of the references.
const whoEnvironment = "environment"

func whoReference(name string) string { return "reference " + name }

// drawRequest returns what is asked for a sample: the request of its prompt, with
// the seed that follows from who is asked and from the case. A seed of null says
// that the server is to draw one, where a protocol would fill in its own.
func drawRequest(c attest.SampledCriteria, request, who, id string) json.RawMessage {
	seed := "null"
	if c.Seeds == attest.SeedsEach {
		sum := sha256.Sum256([]byte(who + "\n" + id))
		seed = fmt.Sprint(binary.BigEndian.Uint32(sum[:]) >> 1)
	}
	members := `{"seed":` + seed
	if c.Temperature > 0 {
		members += `,"temperature":` + stats.Format(c.Temperature)
	}
	rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(request), "{"))
	if rest != "}" {
		members += ","
	}
	return json.RawMessage(members + rest)
}

// choicesOf says how many choices each answer to a request has, or why the request
// is none that draws at random.
func choicesOf(c attest.SampledCriteria, request string) (int, error) {
	var q struct {
		Temperature *float64        `json:"temperature"`
		Seed        json.RawMessage `json:"seed"`
		N           *int            `json:"n"`
	}
	if err := json.Unmarshal([]byte(request), &q); err != nil {
		return 0, err
	}
	switch {
	case c.Temperature > 0 && q.Temperature != nil:
		return 0, fmt.Errorf("it has a temperature, and the criteria have one for all: leave one of them out")
	case c.Temperature == 0 && (q.Temperature == nil || !(*q.Temperature > 0)):
		return 0, errors.New("it has no temperature above 0, and only with one are texts drawn at random")
	case q.Seed != nil:
		return 0, errors.New("it has a seed, and every sample needs one of its own: leave it out")
	case q.N == nil:
		return 1, nil
	case *q.N < 1 || c.Samples%*q.N != 0:
		return 0, fmt.Errorf("%d samples are not a multiple of its n, %d", c.Samples, *q.N)
	}
	return *q.N, nil
}

// checkSampled checks that each prompt has its samples, from every reference.
func (s *Suite) checkSampled() error {
	want := *s.Criteria.Text.Sampled
	if s.Document.Border > 0 {
		return errors.New("suite: sampled texts have no border cases, as no text is a decision")
	}
	if s.Document.Reference.Sampled == nil {
		return errors.New("suite: how far the halves of the reference's samples are apart was not measured")
	}
	if err := enoughResamples(s.Criteria.Plan, 1+len(s.Document.Accepted)); err != nil {
		return err
	}
	counts := map[string]int{}
	sym := newSymbols(want)
	for _, c := range s.Cases {
		if isClosed(c) {
			continue
		}
		t := s.Texts[c.ID]
		n, err := choicesOf(want, t.Request)
		if err != nil {
			return fmt.Errorf("suite: case %s: %w", c.ID, err)
		}
		if c.Cluster == "" || len(t.Choices) != n || len(t.Accepted) != len(s.Document.Accepted) {
			return fmt.Errorf("suite: case %s of prompt %q has %d choices of %d, and %d of %d accepted references", c.ID, c.Cluster, len(t.Choices), n, len(t.Accepted), len(s.Document.Accepted))
		}
		all := slices.Clone(t.Choices)
		for i, a := range t.Accepted {
			if a.Name != s.Document.Accepted[i].Name || len(a.Choices) != n {
				return fmt.Errorf("suite: case %s: accepted reference %s has %d choices of %d", c.ID, a.Name, len(a.Choices), n)
			}
			all = append(all, a.Choices...)
		}
		for _, choice := range all {
			if _, _, err := sym.of(choice); err != nil {
				return fmt.Errorf("suite: case %s: %w", c.ID, err)
			}
		}
		counts[c.Cluster] += n
	}
	if s.Closed() > 0 {
		return nil // the rest of a prompt may be in the sealed part
	}
	for _, prompt := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[prompt]; n != want.Samples {
			return fmt.Errorf("suite: prompt %s has %d samples, and the criteria say %d", prompt, n, want.Samples)
		}
	}
	return nil
}

// enoughResamples says why k chances that share alpha could not be shown, or nil.
func enoughResamples(plan attest.BinomialPlan, k int) error {
	if plan.Alpha*float64(resamples+1) < float64(2*k) { // twice: see the correction for few clusters in package stats
		return fmt.Errorf("criteria: an alpha of %v with %d references cannot be shown with %d resamples; use a larger alpha", plan.Alpha, k, resamples)
	}
	return nil
}

// symbols turns texts into numbers.
type symbols struct {
	attest.SampledCriteria
	tokens map[string]int32
}

func newSymbols(c attest.SampledCriteria) *symbols { return &symbols{c, map[string]int32{}} }

// of returns the symbols of a choice that are compared, and how many are behind
// the prefix. What a model refuses or calls is as much of its answer as its text.
func (s *symbols) of(c attest.TextChoice) (list []int32, beyond int, err error) {
	text := c.Text
	if s.Unit == attest.UnitTokens {
		text = ""
		if len(c.Tokens) == 0 && c.Text != "" {
			return nil, 0, errors.New("its answer has no tokens: the request has to ask for log probabilities")
		}
		for _, t := range c.Tokens {
			n, ok := s.tokens[t.Token]
			if !ok {
				n = math.MaxInt32 - int32(len(s.tokens)) // above all code points
				s.tokens[t.Token] = n
			}
			list = append(list, n)
		}
	}
	if c.Refusal != "" {
		text += "\x00" + c.Refusal
	}
	for _, call := range c.ToolCalls {
		arguments := call.Arguments
		if attest.CheckJSON([]byte(arguments)) == nil {
			if canonical, err := attest.Marshal([]json.RawMessage{json.RawMessage(arguments)}); err == nil {
				arguments = string(canonical)
			}
		}
		text += "\x00" + call.Name + "\x00" + arguments
	}
	for _, r := range text {
		list = append(list, r)
	}
	if s.Prefix > 0 && len(list) > s.Prefix {
		return list[:s.Prefix], len(list) - s.Prefix, nil
	}
	return list, 0, nil
}

// A drawn is the samples of one side, by prompt, in the order of the cases, which
// is the order in which they were drawn: one of each prompt after the other.
type drawn struct {
	byPrompt      map[string][][]int32
	texts, length int // all of them, and their symbols
	beyond        int // of those, the ones behind the prefix
	finish        map[string]int
	symbols       *symbols
}

func newDrawn(s *symbols) *drawn {
	return &drawn{byPrompt: map[string][][]int32{}, finish: map[string]int{}, symbols: s}
}

// add takes up the samples of one answer: all of them, or none with an error.
func (d *drawn) add(prompt string, choices []attest.TextChoice) error {
	var lists [][]int32
	length, beyond := 0, 0
	for _, c := range choices {
		list, more, err := d.symbols.of(c)
		if err != nil {
			return err
		}
		lists = append(lists, list)
		length, beyond = length+len(list)+more, beyond+more
	}
	for _, c := range choices {
		d.finish[c.FinishReason]++
	}
	d.byPrompt[prompt] = append(d.byPrompt[prompt], lists...)
	d.texts, d.length, d.beyond = d.texts+len(lists), d.length+length, d.beyond+beyond
	return nil
}

func (d *drawn) mean() float64 { return float64(d.length) / float64(max(1, d.texts)) }

// constant reports whether no prompt got two texts that differ.
func (d *drawn) constant() bool {
	for _, all := range d.byPrompt {
		for _, x := range all {
			if !slices.Equal(x, all[0]) {
				return false
			}
		}
	}
	return true
}

// halves pairs the earlier and the later half of each prompt's samples.
func (d *drawn) halves() (list []stats.Samples) {
	for _, prompt := range slices.Sorted(maps.Keys(d.byPrompt)) {
		all := d.byPrompt[prompt]
		list = append(list, stats.Samples{Want: all[:len(all)/2], Got: all[len(all)/2:]})
	}
	return list
}

// against pairs the samples of a reference with those of the environment.
func (d *drawn) against(got *drawn) (list []stats.Samples) {
	for _, prompt := range slices.Sorted(maps.Keys(d.byPrompt)) {
		list = append(list, stats.Samples{Want: d.byPrompt[prompt], Got: got.byPrompt[prompt]})
	}
	return list
}

const (
	// mostDistance is the largest distance that two distributions can have.
	mostDistance = 2

	// permutations and resamples of tests on clusters.
	permutations = 999
	resamples    = 1999

	// tooAlike is the p at and below which texts have more in common than draws
	// have: one honest environment in a thousand is asked once more.
	tooAlike = 0.001
)

// distanceOf tests the mean distance over prompts at plan's rates: each at one k-th of
// alpha, if it is one of k.
func distanceOf(list []stats.Samples, plan attest.BinomialPlan, k int, seed ...string) (t, shared stats.ClusterTest, m stats.MMDTest, err error) {
	if m, err = stats.MMD(list, permutations, stats.NewGenerator(append(slices.Clone(seed), "permutations")...)); err != nil {
		return t, shared, m, err
	}
	ones := make([]float64, len(list))
	for i := range ones {
		ones[i] = 1
	}
	test := func(alpha float64) (stats.ClusterTest, error) {
		return stats.Clustered(m.ByPrompt, ones, mostDistance, plan.Margin, alpha, plan.Beta, resamples, stats.NewGenerator(append(slices.Clone(seed), "resamples")...))
	}
	if t, err = test(plan.Alpha); err != nil || k == 1 {
		return t, t, m, err
	}
	shared, err = test(plan.Alpha / float64(k))
	return t, shared, m, err
}

// floorOf compares the halves of a reference's samples. A reference that is shown
// to have changed while it was recorded is none.
func floorOf(d *drawn, plan attest.BinomialPlan, name string) (*attest.SampledFloor, error) {
	if d.constant() {
		return nil, errors.New("no prompt got two texts that differ: it does not draw at random, or always with one seed")
	}
	t, _, m, err := distanceOf(d.halves(), plan, 1, "halves", name)
	if err != nil {
		return nil, err
	}
	if t.Beyond <= plan.Alpha {
		return nil, fmt.Errorf("it changed while it was recorded: the halves of its samples are %s apart, which is more than the margin %s", format(t.Mean), format(plan.Margin))
	}
	if m.Alike <= tooAlike {
		return nil, errors.New("the later half of its samples repeats the earlier one: it does not draw each anew")
	}
	return &attest.SampledFloor{Distance: rounded(t.Mean), Upper: rounded(min(mostDistance, t.Upper)), Unseen: rounded(min(mostDistance, t.Unseen))}, nil
}

// rounded keeps 9 significant digits, which is all that documents show of numbers.
func rounded(x float64) float64 {
	var y float64
	fmt.Sscan(stats.Format(x), &y)
	return y
}

// sampling collects what is judged of sampled texts.
type sampling struct {
	*drawn
	references []*drawn
	names      []string
	test       stats.ClusterTest // against the nearest
	p, apart   float64           // over all references: of "it is like none of them" and of "it is like one"
	alike      string            // the reference that the texts have too much in common with
	summary    attest.SampledSummary
	err        error
}

func newSampling(s *Suite) (*sampling, error) {
	sym := newSymbols(*s.Criteria.Text.Sampled)
	x := &sampling{drawn: newDrawn(sym), names: []string{attest.ReferenceName}, p: 1, apart: 1}
	for _, a := range s.Document.Accepted {
		x.names = append(x.names, a.Name)
	}
	for i := range x.names {
		d := newDrawn(sym)
		for _, c := range s.Cases {
			choices := s.Texts[c.ID].Choices
			if i > 0 {
				choices = s.Texts[c.ID].Accepted[i-1].Choices
			}
			if err := d.add(c.Cluster, choices); err != nil {
				return nil, fmt.Errorf("suite: case %s: %w", c.ID, err)
			}
		}
		x.references = append(x.references, d)
	}
	return x, nil
}

// sample takes up one answer.
func (j *judge) sample(c attest.Case, golden attest.Text, got []attest.TextChoice) error {
	switch {
	case len(got) < len(golden.Choices):
		return target.Wrongf("missing-output", "%d choices, and the reference gave %d", len(got), len(golden.Choices))
	case len(got) > len(golden.Choices):
		return target.Wrongf("extra-output", "%d choices, and the reference gave %d", len(got), len(golden.Choices))
	}
	before := j.sampling.length - j.sampling.beyond
	if err := j.sampling.add(c.Cluster, got); err != nil {
		return err
	}
	j.report.Cases.Elements += j.sampling.length - j.sampling.beyond - before
	j.report.Cases.Compared++
	return nil
}

// sampledTexts compares the distributions. To be certified the environment has to
// be like one of the references: that is one chance for each, which share alpha
// (Bonferroni). It is refused if it is beyond the margin from all of them, which
// needs no correction (Berger, 1982).
func (j *judge) sampledTexts() {
	x, plan := j.sampling, j.r.Suite.Criteria.Plan
	c := j.r.Suite.Criteria.Text.Sampled
	s := &x.summary
	*s = attest.SampledSummary{
		Unit: c.Unit, Prefix: c.Prefix, Seeds: c.Seeds, Samples: c.Samples, Prompts: len(x.references[0].byPrompt),
		Symbols: x.length - x.beyond, Beyond: x.beyond, Length: format(x.mean()), Drift: "unknown", Unmet: format(stats.Detectable(plan.N, 0, plan.Beta)),
		References: []attest.SampledReference{}, Finish: []attest.FinishCount{},
	}
	reasons := maps.Clone(x.finish)
	maps.Copy(reasons, x.references[0].finish)
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		s.Finish = append(s.Finish, attest.FinishCount{Reason: reason, Reference: x.references[0].finish[reason], Environment: x.finish[reason]})
	}
	j.report.Sampled = s
	var p, beyond []float64
	for i, r := range x.references {
		t, shared, m, err := distanceOf(r.against(x.drawn), plan, len(x.references), string(j.r.PlanDigest), x.names[i])
		if err != nil {
			x.err = err
			return
		}
		s.References = append(s.References, attest.SampledReference{
			Name: x.names[i], Distance: format(t.Mean), Lower: format(t.Lower), Upper: format(shared.Upper),
			P: format(t.P), Beyond: format(t.Beyond), SameP: format(m.P), AlikeP: format(m.Alike), Length: format(r.mean()),
		})
		if len(p) == 0 || t.P < slices.Min(p) || t.P == slices.Min(p) && shared.Upper < x.test.Upper {
			x.test, s.Nearest = shared, x.names[i]
		}
		if m.Alike <= tooAlike {
			x.alike = x.names[i]
		}
		p, beyond = append(p, t.P), append(beyond, t.Beyond)
	}
	x.p, x.apart = stats.EquivalentToOne(p), stats.DiffersFromAll(beyond)
	if t, _, _, err := distanceOf(x.halves(), plan, 1, string(j.r.PlanDigest), "drift"); err == nil {
		s.Drift = format(t.Mean)
	}
}

// decideSampled turns the distance into reasons.
func (j *judge) decideSampled() {
	x, plan := j.sampling, j.r.Suite.Criteria.Plan
	switch {
	case x.err != nil:
		j.fallsShort("the distance of sampled texts cannot be judged: %v", x.err)
		return
	case x.apart <= plan.Alpha:
		j.differs("texts are drawn from another distribution: they are at a distance of %s from %s, and %s is allowed", format(x.test.Mean), x.name(), format(plan.Margin))
	case x.p > plan.Alpha:
		j.fallsShort("it is not shown that the distance of sampled texts from %s is within %s: it is %s, and up to %s with %s confidence; more prompts or more samples would tell", x.name(), format(plan.Margin), format(x.test.Mean), format(x.test.Upper), percent(1-plan.Alpha))
	}
	if x.alike != "" {
		j.fallsShort("the texts have more in common with those of %s than two draws have: a shared seed or a store of answers shows nothing of what they are drawn from", x.called(x.alike))
	}
}

// called names a reference in a sentence.
func (x *sampling) called(name string) string {
	if name == attest.ReferenceName {
		return "the reference"
	}
	return "the accepted reference " + name
}

// name says which reference a claim is about.
func (x *sampling) name() string {
	if len(x.names) == 1 {
		return "the reference"
	}
	return fmt.Sprintf("%s, the nearest of %d", x.called(x.summary.Nearest), len(x.names))
}

// words says what is different.
func (x *sampling) words() string {
	if x.err != nil || x.texts == 0 {
		return "no distribution was compared"
	}
	said := fmt.Sprintf("sampled texts are at a distance of %s from %s (margin %s)", format(x.test.Mean), x.name(), format(x.test.Margin))
	if x.constant() {
		said += "; every prompt always gets the same text, as without a temperature or with one seed"
	}
	return said
}

// unseen is the smallest distance that would have been refused with probability
// 1 - beta, or what would, if it could not be tested.
func (x *sampling) unseen() float64 {
	if x.err != nil {
		return mostDistance
	}
	return min(mostDistance, x.test.Unseen)
}

// upper is what the distance is shown to be below: what cannot be tested may be as
// far as can be.
func (x *sampling) upper() float64 {
	if x.err != nil {
		return mostDistance
	}
	return min(mostDistance, x.test.Upper)
}

// sampledPlan says in words what a plan about sampled texts claims, and what it can
// miss.
func sampledPlan(c attest.Criteria, floor *attest.SampledFloor, accepted int) []string {
	p, s := c.Plan, c.Text.Sampled
	like := "the reference's"
	if accepted > 0 {
		like = fmt.Sprintf("those of one of %d references", 1+accepted)
	}
	list := []string{
		fmt.Sprintf("an environment is certified when the distance of its texts from %s is shown to be below %s", like, stats.Format(p.Margin)),
		fmt.Sprintf("that is with %s confidence (alpha %s), over %d prompts with %d samples each; 0 is the same distribution, and %d nothing in common", percent(1-p.Alpha), stats.Format(p.Alpha), p.N, s.Samples, mostDistance),
	}
	list = append(list, fmt.Sprintf("a difference in fewer than %s of all prompts, however large, may not be met at all", percent(stats.Detectable(p.N, 0, p.Beta))))
	if floor != nil {
		list = append(list, fmt.Sprintf("a distance of %s or more is refused with probability %s (beta %s), as far as half of the reference's own samples say", stats.Format(floor.Unseen), percent(1-p.Beta), stats.Format(p.Beta)))
		if floor.Upper >= p.Margin {
			list = append(list, fmt.Sprintf("the halves of the reference's own samples are shown to be within %s only: an environment that draws as it does may not be certified; take more prompts or samples, or a wider margin", stats.Format(floor.Upper)))
		}
	} else {
		list = append(list, fmt.Sprintf("what could go unseen (beta %s) is computed from the reference's own samples when it is recorded", stats.Format(p.Beta)))
	}
	return list
}

// recordSampled is [Record] for texts that are drawn at random.
func recordSampled(ctx context.Context, tg target.Target, d target.Description, opt RecordOptions) (*Suite, error) {
	c := *opt.Criteria.Text.Sampled
	if err := opt.Criteria.Validate(); err != nil {
		return nil, err
	}
	if err := enoughResamples(opt.Criteria.Plan, 1+len(opt.Accepted)); err != nil {
		return nil, err
	}
	if opt.Border > 0 {
		return nil, errors.New("sampled texts have no border cases, as no text is a decision: --border 0")
	}
	about := func(d target.Description, t attest.Target) attest.Reference {
		return attest.Reference{ServedModel: d.Model, ServedVersion: t.Version, Platform: d.Platform, RecordedAt: opt.Clock().UTC(),
			Noise: map[string]float64{}, Perturbations: []string{"the earlier half of the samples against the later"}, Measured: opt.Claim}
	}
	s := &Suite{Criteria: opt.Criteria, Texts: map[string]attest.Text{}}
	s.Document = attest.Suite{
		Name: opt.Name, Kind: attest.KindTexts, Model: opt.Model, Protocol: opt.Target.Protocol, DataClassification: opt.DataClassification,
		Inputs: []attest.TensorSpec{}, Outputs: []attest.TensorSpec{}, CreatedAt: opt.Clock().UTC(), Reference: about(d, opt.Target),
	}
	recorders, names := []*recorder{{ctx: ctx, tg: tg, opt: opt}}, []string{attest.ReferenceName}
	for _, a := range opt.Accepted {
		d, err := a.Reference.Describe(ctx)
		if err != nil {
			return nil, fmt.Errorf("accepted reference %s: %w", a.Name, err)
		}
		s.Document.Accepted = append(s.Document.Accepted, attest.AcceptedReference{Name: a.Name, Reference: about(d, a.Target)})
		other := opt
		other.Target = a.Target
		recorders, names = append(recorders, &recorder{ctx: ctx, tg: a.Reference, opt: other}), append(names, a.Name)
	}
	seed := sha256.New()
	for _, p := range opt.Candidates {
		if p.Request == nil || p.Cluster != "" {
			return nil, fmt.Errorf("case %s: sampled texts are asked for with requests, and each prompt is a cluster of its own", p.ID)
		}
		if _, err := choicesOf(c, string(p.Request)); err != nil {
			return nil, fmt.Errorf("case %s: %w", p.ID, err)
		}
		io.WriteString(seed, p.ID+"\n"+string(p.Request)+"\n")
	}
	chosen, _, err := draw(slices.Clone(opt.Candidates), [32]byte(seed.Sum(nil)), opt.Claim, 0, func(c Candidate) (string, string, float64) { return c.ID, c.Stratum, 0 })
	if err != nil {
		return nil, err
	}
	// The number of the sample comes first in its id: cases are asked in the order
	// of their ids, and what changes meanwhile is then between the halves of every
	// prompt, and not between prompts.
	prompts := map[string]Candidate{}
	for _, p := range chosen {
		n, _ := choicesOf(c, string(p.Request))
		for i := range c.Samples / n {
			id := fmt.Sprintf("%03d.%s", i+1, p.ID)
			prompts[id] = p
			s.Cases = append(s.Cases, attest.Case{ID: id, Stratum: attest.StratumClaim, Slice: maps.Clone(p.Slice), Cluster: p.ID})
		}
	}
	slices.SortFunc(s.Cases, func(a, b attest.Case) int { return strings.Compare(a.ID, b.ID) })
	for i, rec := range recorders {
		for k := range s.Cases {
			one := &s.Cases[k]
			written := string(bytes.TrimSpace(prompts[one.ID].Request))
			request, answer, err := rec.send(target.Question{ID: one.ID, Model: rec.opt.Target.Model, Version: rec.opt.Target.Version, Request: drawRequest(c, written, whoReference(names[i]), one.ID)})
			var choices []attest.TextChoice
			if err == nil {
				choices, err = textChoices(answer)
			}
			if err == nil && len(choices) == 0 {
				err = fmt.Errorf("its answer has no text: protocol %s does not answer with texts", rec.opt.Target.Protocol)
			}
			if err != nil {
				return nil, fmt.Errorf("%s, case %s: %w", names[i], one.ID, err)
			}
			t := s.Texts[one.ID]
			if i == 0 {
				one.Request = string(digest.FromBytes(request))
				t = attest.Text{ID: one.ID, Request: written, Choices: choices}
				if u := answer.Usage; u != nil {
					t.Usage = &attest.TextUsage{Prompt: u.Prompt, Completion: u.Completion}
				}
			} else {
				t.Accepted = append(t.Accepted, attest.AcceptedChoices{Name: names[i], Choices: choices})
			}
			s.Texts[one.ID] = t
		}
	}
	s.Document.Claim = len(s.Cases)
	x, err := newSampling(s)
	if err != nil {
		return nil, err
	}
	for i, d := range x.references {
		floor, err := floorOf(d, opt.Criteria.Plan, names[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.called(names[i]), err)
		}
		if i == 0 {
			s.Document.Reference.Sampled = floor
		} else {
			s.Document.Accepted[i-1].Sampled = floor
		}
	}
	return s, s.validate()
}
