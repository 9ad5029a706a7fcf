package conformance

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// otherWay returns a question of a text as it is asked the other way: streamed if
// it is asked whole, and whole if it is streamed. What is drawn at random is not
// asked both ways: two answers to it may differ.
func otherWay(q target.Question, t attest.Target, p target.Protocol) (target.Question, error) {
	if t.Protocol != openai.NameChat && t.Protocol != openai.NameCompletions {
		return q, fmt.Errorf("case %s: protocol %s has no streams, so that nothing can be asked both ways", q.ID, t.Protocol)
	}
	request, err := p.Encode(q)
	if err != nil {
		return q, fmt.Errorf("case %s: %w", q.ID, err)
	}
	other, sampled, err := openai.OtherWay(q, request)
	if err == nil && sampled {
		err = errors.New("its temperature is above 0: two answers to it may differ, and cannot be compared streamed and whole")
	}
	if err != nil {
		return q, fmt.Errorf("case %s: %w", q.ID, err)
	}
	return other, nil
}

// waysProbes are the questions of a plan that are asked the other way too.
func (s *Suite) waysProbes(plan attest.Plan, p target.Protocol) (list []probe, err error) {
	for _, c := range s.Cases[:min(plan.BothWays, len(s.Cases))] {
		q, _, _ := s.question(c, plan.Target)
		if q, err = otherWay(q, plan.Target, p); err != nil {
			return nil, err
		}
		request, err := p.Encode(q)
		if err != nil {
			return nil, fmt.Errorf("case %s, the other way: %w", c.ID, err)
		}
		list = append(list, probe{attest.ProbeOtherWay, []attest.Case{c}, q, request})
	}
	return list, nil
}

// Classes of what differs between an answer that was streamed and one that came
// whole. Those of the first group are what a model says, which may differ when it
// is asked again; the others are how the server tells it, which may not.
const (
	waysText      = "stream-text"
	waysToolCalls = "stream-tool-calls"

	waysChoices  = "stream-choices" // another number of them
	waysRefusal  = "stream-refusal"
	waysFinish   = "stream-finish-reason"
	waysLogprobs = "stream-logprobs" // other tokens, or none
	waysUsage    = "stream-usage"
)

// said reports whether a class is of what the model says.
func said(class string) bool { return class == waysText || class == waysToolCalls }

// ways compares an answer with the one to the same question the other way. It
// returns the classes of what differs, sorted, and for people what the first one
// is. What follows from another text is not counted beside it.
func ways(a, b *target.Answer) (kinds []string, detail string, err error) {
	x, err1 := textChoices(a)
	y, err2 := textChoices(b)
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", err
	}
	found := map[string]string{}
	note := func(class, format string, a ...any) {
		if _, ok := found[class]; !ok {
			found[class] = fmt.Sprintf(format, a...)
		}
	}
	if len(x) != len(y) {
		note(waysChoices, "%d choices, and the other way %d", len(x), len(y))
	}
	for i := range min(len(x), len(y)) {
		switch v, w := x[i], y[i]; {
		case v.Text != w.Text:
			note(waysText, "%s, and the other way %s", quote(v.Text), quote(w.Text))
		case !sameCalls(v, w):
			note(waysToolCalls, "%s, and the other way %s", quote(fmt.Sprint(v.ToolCalls)), quote(fmt.Sprint(w.ToolCalls)))
		default:
			if v.Refusal != w.Refusal {
				note(waysRefusal, "%s, and the other way %s", quote(v.Refusal), quote(w.Refusal))
			}
			if v.FinishReason != w.FinishReason {
				note(waysFinish, "it ends for %s, and the other way for %s", quote(v.FinishReason), quote(w.FinishReason))
			}
			if !slices.EqualFunc(v.Tokens, w.Tokens, func(a, b attest.TextToken) bool { return a.Token == b.Token }) {
				note(waysLogprobs, "log probabilities of %d tokens, and the other way of %d or of others", len(v.Tokens), len(w.Tokens))
			}
		}
	}
	if len(found) == 0 || !slices.ContainsFunc(slices.Collect(maps.Keys(found)), func(class string) bool { return said(class) || class == waysChoices }) {
		switch u, v := a.Usage, b.Usage; {
		case (u == nil) != (v == nil):
			note(waysUsage, "tokens are counted one way only")
		case u != nil && *u != *v:
			note(waysUsage, "it counts %+v, and the other way %+v", *u, *v)
		}
	}
	kinds = slices.Sorted(maps.Keys(found))
	if len(kinds) > 0 {
		detail = found[kinds[0]]
	}
	return kinds, detail, nil
}

// bothWays judges what was asked streamed and whole. A difference in what a model
// says is one of the environment if nothing moves when it is asked the same again
// (moved), there and at the reference; else it cannot be told from that, and the
// evidence does not reach. Any other difference is one.
func (j *judge) bothWays(list []probe, observed map[string][]*attest.Observation, moved bool) {
	cases := len(j.r.Suite.Cases)
	if j.r.Suite.Criteria.Text.BothWays && len(list) < cases {
		j.fallsShort("the criteria ask for every case streamed and whole, and the plan for %d of %d", len(list), cases)
	}
	if len(list) == 0 {
		return
	}
	w := &attest.BothWays{Planned: len(list), Differ: map[string]int{}}
	j.texts.summary.BothWays = w
	open, told := 0, 0 // pairs that cannot be told from noise, and that differ
	for _, p := range list {
		c := p.cases[0]
		kinds, detail, err := j.pairOfWays(p, observed[probeKey(p.kind, c.ID)], observed[c.ID])
		if err != nil {
			var wrong *target.Wrong
			if !errors.As(err, &wrong) || wrong.Class == "http" {
				j.example(c.ID, "not compared streamed and whole", err.Error())
				continue
			}
			// An answer that is none, one way only.
			kinds, detail = []string{wrong.Class}, "the other way: "+wrong.Message
		}
		w.Compared++
		if len(kinds) == 0 {
			w.Same++
			continue
		}
		for _, class := range kinds {
			w.Differ[class]++
		}
		if moved && !slices.ContainsFunc(kinds, func(class string) bool { return !said(class) }) {
			open++
		} else {
			told++
		}
		j.example(c.ID, strings.Join(kinds, ", "), detail)
	}
	if told > 0 {
		j.differs("%d of %d cases are answered otherwise streamed than whole (%s)", told, w.Compared, classes(w.Differ))
	}
	if open > 0 {
		j.fallsShort("%d of %d cases are answered otherwise streamed than whole, and answers change when the same is asked again: whether it is the stream is not known", open, w.Compared)
	}
	if n := w.Planned - w.Compared; n > 0 {
		j.fallsShort("%d of %d cases were not compared streamed and whole", n, w.Planned)
	}
}

// pairOfWays compares the answers to one case.
func (j *judge) pairOfWays(p probe, other, first []*attest.Observation) ([]string, string, error) {
	o := answered(first)
	if o == nil || o.Error != nil {
		return nil, "", errors.New("the case has no first answer to compare with")
	}
	q, _, _ := j.r.Suite.question(p.cases[0], j.r.Plan.Target)
	a, err := j.protocol.Decode(q, responseOf(o))
	if err != nil {
		return nil, "", fmt.Errorf("the case has no first answer to compare with: %v", err) // it is counted as that
	}
	b, err := j.probeAnswer(p, other)
	if err != nil {
		return nil, "", err
	}
	return ways(a, b)
}

// bothWays asks the reference a question the other way too. One that answers
// otherwise then is no reference.
func (r *recorder) bothWays(q target.Question, a *target.Answer) error {
	q, err := otherWay(q, r.opt.Target, r.tg)
	if err != nil {
		return err
	}
	_, b, err := r.send(q)
	if err != nil {
		return fmt.Errorf("asked the other way: %w", err)
	}
	kinds, detail, err := ways(a, b)
	if err == nil && len(kinds) > 0 {
		err = fmt.Errorf("it is answered otherwise streamed than whole (%s): %s", strings.Join(kinds, ", "), detail)
	}
	return err
}
