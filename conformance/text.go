package conformance

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/httpjson"
	"github.com/assay-dev/assay/verify/attest"
)

// ofTexts reports whether the cases ask with requests and are answered by texts.
func (s *Suite) ofTexts() bool { return s.Document.Kind == attest.KindTexts }

// checkTexts checks that each open case has a text, that a decision can be read
// off its golden answer, and that there are no others.
func (s *Suite) checkTexts() error {
	d, err := newDecider(*s.Criteria.Text)
	if err != nil {
		return err
	}
	if err := s.eachText(func(t attest.Text) error {
		if err := t.Validate(); err != nil {
			return fmt.Errorf("suite: %w", err)
		}
		if err := d.golden(t); err != nil {
			return fmt.Errorf("suite: case %s: %w", t.ID, err)
		}
		if l := s.paced(); l != "" && !streams(t.Request) {
			return fmt.Errorf("suite: case %s is not streamed, so that it has no time to a first token: %s needs \"stream\":true in every request", t.ID, l)
		}
		return nil
	}); err != nil {
		return err
	}
	if s.sampled() {
		return s.checkSampled()
	}
	return nil
}

// eachText checks what each open case asks, and that nothing else is asked.
func (s *Suite) eachText(check func(attest.Text) error) error {
	open := 0
	for _, c := range s.Cases {
		if isClosed(c) {
			continue
		}
		open++
		t, ok := s.Texts[c.ID]
		if !ok || t.ID != c.ID {
			return fmt.Errorf("suite: case %s has no request", c.ID)
		}
		if err := check(t); err != nil {
			return err
		}
	}
	if len(s.Texts) != open {
		return fmt.Errorf("suite: it has requests of %d cases, and %d cases that are not sealed", len(s.Texts), open)
	}
	return nil
}

// paced is the limit for which texts have to be streamed, "" if there is none.
func (s *Suite) paced() string {
	for _, l := range s.Criteria.Limits {
		if l.Measure == attest.MeasureFirstToken || l.Measure == attest.MeasureToken {
			return l.Measure
		}
	}
	return ""
}

// streams reports whether a request asks for a stream.
func streams(request string) bool {
	var q struct {
		Stream bool `json:"stream"`
	}
	return json.Unmarshal([]byte(request), &q) == nil && q.Stream
}

// textChoices is what an answer says, in the words of a suite. Log probabilities
// that are no numbers are a *[target.Wrong].
func textChoices(a *target.Answer) ([]attest.TextChoice, error) {
	var list []attest.TextChoice
	number := func(x float64) (float64, error) {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return 0, target.Wrongf("not-finite", "a log probability is %v", x)
		}
		return min(x, 0), nil // protocols let pass what rounding puts above 0
	}
	for _, c := range a.Choices {
		to := attest.TextChoice{Text: c.Text, Refusal: c.Refusal, FinishReason: c.FinishReason}
		for _, call := range c.ToolCalls {
			to.ToolCalls = append(to.ToolCalls, attest.TextToolCall{Name: call.Name, Arguments: call.Arguments})
		}
		for _, t := range c.Tokens {
			x, err := number(t.Logprob)
			if err != nil {
				return nil, err
			}
			token := attest.TextToken{Token: t.Text, Logprob: x}
			for _, alt := range t.Top {
				if x, err = number(alt.Logprob); err != nil {
					return nil, err
				}
				token.Top = append(token.Top, attest.TextAlternative{Token: alt.Text, Logprob: x})
			}
			to.Tokens = append(to.Tokens, token)
		}
		list = append(list, to)
	}
	return list, nil
}

// A decider reads off texts what must not flip.
type decider struct {
	attest.TextCriteria
	pattern *regexp.Regexp
}

func newDecider(c attest.TextCriteria) (decider, error) {
	d := decider{TextCriteria: c}
	var err error
	if c.Pattern != "" {
		d.pattern, err = regexp.Compile(c.Pattern)
	}
	return d, err
}

// golden says why a decision cannot be read off the reference's answer, or nil.
func (d decider) golden(t attest.Text) error {
	if d.Sampled != nil {
		return nil // one of many, and none of them a decision
	}
	tools, err := d.tools(t.Request)
	if err != nil {
		return err
	}
	for i, c := range t.Choices {
		// An answer is the same as itself; where it is not, it is none.
		if d.flips(tools, c, c) {
			return fmt.Errorf("no %s can be read off choice %d of the reference's answer, %s", d.Decision, i, quote(c.Text))
		}
	}
	return nil
}

// tools are the schemas of the arguments of the functions that a request offers.
func (d decider) tools(request string) (map[string]*jsonschema.Schema, error) {
	if d.Decision != attest.DecideToolCalls {
		return nil, nil
	}
	var r struct {
		Tools []struct {
			Function struct {
				Name       string          `json:"name"`
				Parameters json.RawMessage `json:"parameters"`
			} `json:"function"`
		} `json:"tools"`
	}
	if err := json.Unmarshal([]byte(request), &r); err != nil {
		return nil, fmt.Errorf("the tools of the request: %w", err)
	}
	schemas := map[string]*jsonschema.Schema{}
	for _, t := range r.Tools {
		raw := t.Function.Parameters
		if raw == nil {
			raw = json.RawMessage(`{"type":"object"}`) // without parameters any object will do
		}
		schema, err := compare.Schema(raw)
		if err != nil {
			return nil, fmt.Errorf("the parameters of tool %s: %w", t.Function.Name, err)
		}
		schemas[t.Function.Name] = schema
	}
	return schemas, nil
}

// flips reports whether two choices are of different decisions. What cannot be
// read off one of them is the same as nothing.
func (d decider) flips(tools map[string]*jsonschema.Schema, want, got attest.TextChoice) bool {
	switch d.Decision {
	case attest.DecideToolCalls:
		return !compare.ToolCalls(calls(want), calls(got), tools, 0).Same()
	case attest.DecideAnswer, attest.DecideToken:
		w, ok := d.read(want)
		g, also := d.read(got)
		return !ok || !also || w != g
	}
	return want.Text != got.Text || want.Refusal != got.Refusal || want.FinishReason != got.FinishReason || !sameCalls(want, got)
}

// read returns the answer in a text, or its first token.
func (d decider) read(c attest.TextChoice) (answer string, found bool) {
	switch {
	case d.Decision == attest.DecideToken && len(c.Tokens) > 0:
		return c.Tokens[0].Token, true
	case d.pattern != nil:
		return compare.Extract(c.Text, d.pattern)
	case d.Pointer != "" && attest.CheckJSON([]byte(c.Text)) == nil:
		v, err := httpjson.At(json.RawMessage(c.Text), d.Pointer)
		if err != nil {
			return "", false
		}
		v, err = attest.Marshal([]json.RawMessage{v}) // canonical: 1.0 is 1, and "1" is not
		if err != nil {
			return "", false
		}
		return string(v[1 : len(v)-1]), true
	}
	return "", false
}

// label is what a report calls the decision in a choice. The texts of others are
// quoted and cut: they are in reports that people read in terminals.
func (d decider) label(c attest.TextChoice, reference bool) string {
	if d.Decision == attest.DecideAnswer || d.Decision == attest.DecideToken {
		if answer, ok := d.read(c); ok {
			return quote(answer)
		}
		return "no answer"
	}
	what := map[string]string{attest.DecideText: "text", attest.DecideToolCalls: "tool calls"}[d.Decision]
	switch {
	case reference:
		return "the reference's " + what
	case d.Decision == attest.DecideToolCalls && len(c.ToolCalls) == 0:
		return "no tool calls"
	case d.Decision == attest.DecideToolCalls:
		return "other tool calls"
	}
	return "another text"
}

// quote returns a text in quotes, with what does not print escaped, and not more
// than some of it.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return fmt.Sprintf("%q…", string(r[:most]))
	}
	return fmt.Sprintf("%q", s)
}

func calls(c attest.TextChoice) (list []compare.ToolCall) {
	for _, t := range c.ToolCalls {
		list = append(list, compare.ToolCall(t))
	}
	return list
}

// sameCalls reports whether two choices call the same functions in the same
// order with arguments that say the same.
func sameCalls(want, got attest.TextChoice) bool {
	return slices.EqualFunc(want.ToolCalls, got.ToolCalls, func(x, y attest.TextToolCall) bool {
		if x.Name != y.Name {
			return false
		}
		same, _, err := compare.JSON([]byte(x.Arguments), []byte(y.Arguments), 0)
		return x.Arguments == y.Arguments || err == nil && same
	})
}

// lead is how near the reference came to another text: the least lead, in log
// probability, of a token that it chose over the next likely one. For a
// decision by the first token only that counts. It is +Inf if nobody listed
// others.
func (d decider) lead(choices []attest.TextChoice) float64 {
	least := math.Inf(1)
	for _, c := range choices {
		for i, t := range c.Tokens {
			if d.Decision == attest.DecideToken && i > 0 {
				break
			}
			for _, alt := range t.Top {
				if alt.Token != t.Token {
					least = min(least, math.Abs(t.Logprob-alt.Logprob))
				}
			}
		}
	}
	return least
}

func logprobs(c attest.TextChoice) (list []compare.TokenLogprob) {
	for _, t := range c.Tokens {
		x := compare.TokenLogprob{Token: t.Token, Logprob: t.Logprob, Top: map[string]float64{}}
		for _, alt := range t.Top {
			x.Top[alt.Token] = alt.Logprob
		}
		list = append(list, x)
	}
	return list
}

// A textPair is how two answers to one question differ, choice by choice.
type textPair struct {
	flip     int                      // the first choice that flips; -1 if none does
	texts    []compare.TextDifference // of every choice
	logprobs []compare.LogprobDifference
}

// edit is the largest edit distance, as a share of the longer text.
func (p textPair) edit() (most float64) {
	for _, t := range p.texts {
		if t.Length > 0 {
			most = max(most, float64(t.Distance)/float64(t.Length))
		}
	}
	return most
}

// logprob is the largest difference, and the mean of those of all positions; ok
// is false if there is no position to compare.
func (p textPair) logprob() (most, mean float64, ok bool) {
	n, sum := 0, 0.0
	for _, l := range p.logprobs {
		most = max(most, l.MaxAbs)
		n += l.Positions
		sum += float64(l.MeanAbs * float64(l.Positions))
	}
	if n == 0 {
		return 0, 0, false
	}
	return most, sum / float64(n), true
}

// pair compares two answers. What cannot be compared is a *[target.Wrong].
func (d decider) pair(request string, want, got []attest.TextChoice) (p textPair, err error) {
	p.flip = -1
	switch {
	case len(got) < len(want):
		return p, target.Wrongf("missing-output", "%d choices, and the reference gave %d", len(got), len(want))
	case len(got) > len(want):
		return p, target.Wrongf("extra-output", "%d choices, and the reference gave %d", len(got), len(want))
	}
	tools, err := d.tools(request)
	if err != nil {
		return p, err
	}
	for i := range want {
		if d.flips(tools, want[i], got[i]) && p.flip < 0 {
			p.flip = i
		}
		t, err := compare.Texts(want[i].Text, got[i].Text)
		if err != nil {
			return p, target.Wrongf("not-comparable", "choice %d: %v", i, err)
		}
		p.texts = append(p.texts, t)
		if len(want[i].Tokens) == 0 || len(got[i].Tokens) == 0 && got[i].Text == "" {
			continue // one that says nothing has no tokens
		}
		l, err := compare.Logprobs(logprobs(want[i]), logprobs(got[i]))
		if err != nil {
			return p, target.Wrongf("not-comparable", "choice %d: %v", i, err)
		}
		p.logprobs = append(p.logprobs, l)
	}
	if p.flip >= 0 && d.reordered(tools, want, got) {
		return p, target.Wrongf("reordered", "the choices are those of the reference in another order")
	}
	return p, nil
}

// reordered reports whether each choice of one answer is one of the other's, in
// another order.
func (d decider) reordered(tools map[string]*jsonschema.Schema, want, got []attest.TextChoice) bool {
	left := slices.Clone(got)
	for _, w := range want {
		i := slices.IndexFunc(left, func(g attest.TextChoice) bool { return !d.flips(tools, w, g) })
		if i < 0 {
			return false
		}
		left = slices.Delete(left, i, i+1)
	}
	return true
}

// texts collects what is judged of texts.
type texts struct {
	decider
	suite   *Suite
	summary attest.TextSummary
	tie     float64

	prompts             int // answers that count another number of tokens in the prompt
	unlike              int // claim cases without a log probability to compare
	maxEdit, maxLogprob float64
}

func newTexts(s *Suite) (*texts, error) {
	d, err := newDecider(*s.Criteria.Text)
	t := &texts{decider: d, suite: s, tie: max(s.Criteria.Text.Tie, s.Document.Reference.Noise[attest.NoiseLogprob])}
	t.summary = attest.TextSummary{Decision: s.Criteria.Text.Decision, Earliest: -1}
	return t, err
}

// firstText judges the first answer to a case.
func (j *judge) firstText(c attest.Case, a *target.Answer) {
	t, golden := j.texts, j.r.Suite.Texts[c.ID]
	got, err := textChoices(a)
	var p textPair
	if err == nil && j.sampling == nil {
		p, err = t.pair(golden.Request, golden.Choices, got)
	}
	if err != nil {
		var wrong *target.Wrong
		if !errors.As(err, &wrong) {
			wrong = target.Wrongf("not-comparable", "%v", err)
		}
		j.wrong(c, wrong.Class, wrong.Message)
		return
	}
	// The tokens of the prompt are a fingerprint of tokenizer and chat template,
	// whatever the answer is. Those of an answer that is another one may differ.
	if golden.Usage != nil {
		if what := samePrompt(golden.Usage, a.Usage); what != "" {
			t.prompts++
			j.wrong(c, "prompt-tokens", what)
			return
		}
		if a.Usage.Completion != golden.Usage.Completion && j.sampling == nil {
			t.summary.Completion++
		}
	}
	if j.sampling != nil {
		if err := j.sample(c, golden, got); err != nil {
			j.wrong(c, cmp.Or(classOf(asWrong(err)), "not-comparable"), err.Error())
		}
		return
	}
	if c.Stratum == attest.StratumClaim {
		for _, l := range j.limits {
			_, mean, ok := p.logprob()
			switch {
			case l.Measure == attest.MeasureEdit:
				j.take(l, c, p.edit())
			case l.Measure == attest.MeasureLogprob && ok:
				j.take(l, c, mean)
			case l.Measure == attest.MeasureLogprob:
				t.unlike++
			}
		}
	}
	t.add(golden.Choices, got, p)
	if c.Label != "" && j.accuracy != nil {
		j.right = t.right(c.Label, got)
	}
	for _, l := range p.logprobs {
		j.report.Cases.Elements += l.Positions
	}
	lead := t.lead(golden.Choices)
	if !math.IsInf(lead, 1) {
		j.near(lead, p.flip >= 0)
	}
	from, to, detail := "", "", ""
	if i := p.flip; i >= 0 {
		from, to = t.label(golden.Choices[i], true), t.label(got[i], false)
		detail = t.detail(golden.Choices[i], got[i], p.texts[i], from, to)
	}
	j.decided(c, p.flip >= 0, lead <= t.tie, from, to, detail)
	j.report.Cases.Compared++
}

// samePrompt compares how many tokens two environments count in a prompt, ""
// if it is the same number.
func samePrompt(want *attest.TextUsage, got *target.Usage) string {
	u := compare.Usage{Prompt: -1}
	if got != nil {
		u.Prompt = got.Prompt
	}
	return compare.Usages(compare.Usage{Prompt: want.Prompt}, u)
}

// detail shows people where two choices part.
func (t *texts) detail(want, got attest.TextChoice, d compare.TextDifference, from, to string) string {
	at := func(s string) string { return quote(string([]rune(s)[min(d.Divergence, len([]rune(s))):])) }
	first := ""
	if d.Divergence >= 0 {
		first = fmt.Sprintf("from character %d on, %s is %s", d.Divergence, at(want.Text), at(got.Text))
	}
	switch {
	case t.Decision == attest.DecideToolCalls:
		return fmt.Sprintf("%s become %s", quote(fmt.Sprint(want.ToolCalls)), quote(fmt.Sprint(got.ToolCalls)))
	case t.Decision != attest.DecideText && first != "":
		return from + " becomes " + to + "; " + first
	case t.Decision != attest.DecideText:
		return from + " becomes " + to
	case first != "":
		return first
	case want.FinishReason != got.FinishReason:
		return fmt.Sprintf("the text is the same, and ends for %s instead of %s", quote(got.FinishReason), quote(want.FinishReason))
	}
	return "the text is the same, and what it refuses or calls is not"
}

// add takes the differences of a case into the summary.
func (t *texts) add(want, got []attest.TextChoice, p textPair) {
	s := &t.summary
	for i, d := range p.texts {
		s.Choices++
		if d.Same {
			s.Same++
		}
		if d.Normalized {
			s.Normalized++
		}
		if at := d.Divergence; at >= 0 {
			s.Diverging++
			if s.Earliest < 0 || at < s.Earliest {
				s.Earliest = at
			}
			if 2*at < len([]rune(want[i].Text)) {
				s.Halfway++
			}
		}
		if want[i].FinishReason != got[i].FinishReason {
			s.Finish++
		}
		if !sameCalls(want[i], got[i]) {
			s.ToolCalls++
		}
		if _, ok := t.read(got[i]); !ok && t.Decision == attest.DecideAnswer {
			s.NoAnswer++
		}
	}
	for _, l := range p.logprobs {
		s.Tokens += l.Positions
		s.TopMissing += l.TopMissing
	}
	t.maxEdit = max(t.maxEdit, p.edit())
	most, _, _ := p.logprob()
	t.maxLogprob = max(t.maxLogprob, most)
}

// describe fills the report.
func (t *texts) describe(j *judge) {
	t.summary.MaxEdit, t.summary.MaxLogprob = format(t.maxEdit), format(t.maxLogprob)
	j.report.Texts = &t.summary
	if t.unlike > 0 {
		j.fallsShort("%s cannot be judged: %d texts have no token in common from their beginning", attest.MeasureLogprob, t.unlike)
	}
}

// words says what is different.
func (t *texts) words() string {
	s := t.summary
	switch {
	case s.Choices == 0:
		return "no text was compared"
	case s.Diverging == 0 && s.Tokens == 0:
		return "all texts are the same"
	case s.Diverging == 0:
		return fmt.Sprintf("all texts are the same, and their log probabilities differ by at most %s", s.MaxLogprob)
	}
	return fmt.Sprintf("%d of %d texts differ, the first to do so from character %d on", s.Diverging, s.Choices, s.Earliest)
}

// textNoise sees how often the candidate decides otherwise when it is asked the
// same again. It is noisy if that is shown, at the plan's alpha, to be more often
// than NoiseCriteria.Ratio times what the reference did, and than the margin
// allows: so that neither a reference that always says the same nor one unlucky
// case is a trap. moved says that any text was another one when it was asked
// again, here or at the reference.
func (j *judge) textNoise(list []probe, observed map[string][]*attest.Observation) (moved bool) {
	r, counts := j.r, j.report.Probes
	threads := j.varied()
	reference := r.Suite.Document.Reference.Noise
	moved = reference[attest.NoiseEdit] > 0 || reference[attest.NoiseDecision] > 0
	var flips, edit, logprob float64 // on another number of threads
	for _, p := range list {
		c := p.cases[0]
		pair, err := j.textProbe(p, observed[probeKey(p.kind, c.ID)], observed[c.ID])
		if err != nil {
			if counts.Failed++; counts.Failed == 1 {
				j.example(c.ID, "probe "+p.kind, err.Error())
			}
			continue
		}
		counts.Used++
		switch {
		case p.kind == attest.ProbeThreads:
			threads.Compared++
			if pair.flip >= 0 {
				flips++
			}
			most, _, _ := pair.logprob()
			edit, logprob = max(edit, pair.edit()), max(logprob, most)
		default:
			if pair.flip >= 0 {
				j.texts.summary.Unstable++
			}
			moved = moved || pair.flip >= 0 || pair.edit() > 0
		}
	}
	if threads != nil && threads.Compared > 0 {
		j.spread(threads, attest.NoiseDecision, flips/float64(threads.Compared))
		j.spread(threads, attest.NoiseEdit, edit)
		j.spread(threads, attest.NoiseLogprob, logprob)
	}
	repeats := counts.Used
	if threads != nil {
		repeats -= threads.Compared
	}
	if counts.Failed > 0 {
		j.fallsShort("the candidate's noise floor was not measured: %d of %d probes got no answer that can be compared", counts.Failed, counts.Planned)
	}
	plan, changed := r.Suite.Criteria.Plan, j.texts.summary.Unstable
	most := max(plan.Margin, float64(r.Suite.Criteria.Noise.Ratio*r.Suite.Document.Reference.Noise[attest.NoiseDecision]))
	if stats.LowerBound(changed, repeats, plan.Alpha) > most {
		j.noisy = true
		j.differs("it is noisier than the reference: %d of %d decisions change when it is asked the same again", changed, repeats)
	}
	return moved
}

// textProbe is how the answer to a probe differs from the first one to its case.
func (j *judge) textProbe(p probe, probed, first []*attest.Observation) (pair textPair, err error) {
	again, err := j.probeAnswer(p, probed)
	if err != nil {
		return pair, err
	}
	o := answered(first)
	if o == nil || o.Error != nil {
		return pair, fmt.Errorf("case %s has no first answer to compare with", p.cases[0].ID)
	}
	before, err := j.protocol.Decode(p.question, responseOf(o))
	if err != nil {
		return pair, fmt.Errorf("case %s has no first answer to compare with: %w", p.cases[0].ID, err)
	}
	want, err1 := textChoices(before)
	got, err2 := textChoices(again)
	if err := errors.Join(err1, err2); err != nil {
		return pair, err
	}
	return j.texts.pair(j.r.Suite.Texts[p.cases[0].ID].Request, want, got)
}

// recordTexts is [Record] for criteria of texts. Border cases are those in which
// the reference came nearest to another token, as far as it says so.
func recordTexts(ctx context.Context, tg target.Target, d target.Description, opt RecordOptions) (*Suite, error) {
	decide, err := newDecider(*opt.Criteria.Text)
	if err != nil {
		return nil, err
	}
	rec := &recorder{ctx: ctx, tg: tg, opt: opt}
	s := &Suite{Criteria: opt.Criteria, Texts: map[string]attest.Text{}}
	s.Document = attest.Suite{
		Name: opt.Name, Kind: attest.KindTexts, Model: opt.Model, Protocol: opt.Target.Protocol, DataClassification: opt.DataClassification,
		Inputs: []attest.TensorSpec{}, Outputs: []attest.TensorSpec{}, Claim: opt.Claim, Border: opt.Border, CreatedAt: opt.Clock().UTC(),
		Reference: attest.Reference{
			ServedModel: d.Model, ServedVersion: opt.Target.Version, Platform: d.Platform, RecordedAt: opt.Clock().UTC(),
			Noise: map[string]float64{}, Perturbations: []string{"asked again"}, Measured: opt.Claim + opt.Border,
		},
	}
	type asked struct {
		Candidate
		text    attest.Text
		lead    float64
		request []byte

		question target.Question
		answer   *target.Answer
	}
	ask := func(rec *recorder, c Candidate) (a asked, err error) {
		a = asked{Candidate: c}
		if c.Request == nil {
			return a, errors.New("it has no request, and the criteria are of texts")
		}
		a.question = target.Question{ID: c.ID, Model: opt.Target.Model, Version: opt.Target.Version, Request: c.Request}
		request, answer, err := rec.send(a.question)
		if err != nil {
			return a, err
		}
		a.answer = answer
		if len(answer.Choices) == 0 {
			return a, fmt.Errorf("its answer has no text: protocol %s does not answer with texts", opt.Target.Protocol)
		}
		a.request, a.text = request, attest.Text{ID: c.ID, Request: string(bytes.TrimSpace(c.Request))}
		if a.text.Choices, err = textChoices(answer); err != nil {
			return a, err
		}
		if u := answer.Usage; u != nil {
			a.text.Usage = &attest.TextUsage{Prompt: u.Prompt, Completion: u.Completion}
		}
		a.lead = decide.lead(a.text.Choices)
		return a, decide.golden(a.text)
	}
	var all []asked
	seed := sha256.New()
	for _, c := range opt.Candidates {
		a, err := ask(rec, c)
		if err != nil {
			return nil, fmt.Errorf("the reference, case %s: %w", c.ID, err)
		}
		seed.Write(a.request)
		all = append(all, a)
	}
	chosen, border, err := drawUnits(all, [32]byte(seed.Sum(nil)), opt.Claim, opt.Border, func(a asked) string { return a.Cluster }, func(a asked) (string, string, float64) { return a.ID, a.Stratum, a.lead })
	if err != nil {
		return nil, err
	}
	s.Document.Claim, s.Document.Reference.Measured = len(chosen)-len(border), len(chosen)
	noise := s.Document.Reference.Noise
	for _, name := range attest.NoiseOfTexts {
		noise[name] = 0
	}
	changed := 0
	for _, a := range chosen {
		c := attest.Case{ID: a.ID, Stratum: attest.StratumClaim, Label: a.Label, Cluster: a.Cluster, Slice: maps.Clone(a.Slice), Request: string(digest.FromBytes(a.request))}
		if border[a.ID] {
			c.Stratum = attest.StratumBorder
		}
		s.Cases = append(s.Cases, c)
		s.Texts[a.ID] = a.text
		again, err := ask(rec, a.Candidate)
		var p textPair
		if err == nil {
			p, err = decide.pair(a.text.Request, a.text.Choices, again.text.Choices)
		}
		if err != nil {
			return nil, fmt.Errorf("noise floor of the reference, case %s: %w", a.ID, err)
		}
		if p.flip >= 0 {
			changed++
		}
		if opt.Criteria.Text.BothWays {
			if err := rec.bothWays(a.question, a.answer); err != nil {
				return nil, fmt.Errorf("the reference, case %s: %w", a.ID, err)
			}
		}
		most, _, _ := p.logprob()
		noise[attest.NoiseEdit] = max(noise[attest.NoiseEdit], p.edit())
		noise[attest.NoiseLogprob] = max(noise[attest.NoiseLogprob], most)
	}
	noise[attest.NoiseDecision] = float64(changed) / float64(len(chosen))
	if err := rec.vary(s, len(chosen), func(there *recorder, i int) (map[string]float64, error) {
		a := chosen[i]
		b, err := ask(there, a.Candidate)
		var p textPair
		if err == nil {
			p, err = decide.pair(a.text.Request, a.text.Choices, b.text.Choices)
		}
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", a.ID, err)
		}
		off := map[string]float64{attest.NoiseDecision: 0, attest.NoiseEdit: p.edit()}
		if p.flip >= 0 {
			off[attest.NoiseDecision] = 1
		}
		off[attest.NoiseLogprob], _, _ = p.logprob()
		return off, nil
	}); err != nil {
		return nil, err
	}
	return s, s.validate()
}
