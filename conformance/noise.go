package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// A probe is a question that is asked of the candidate only to see how far its
// answers spread when nothing that matters has changed. The reference was asked
// the same way when the suite was recorded.
type probe struct {
	kind     string
	cases    []attest.Case // one, or those of a batch
	question target.Question
	request  []byte
}

// askable says why the questions of the suite cannot be asked as a plan says, or
// nil. Plans are of whoever replays: what they ask for and nobody would judge is
// refused.
func (s *Suite) askable(plan attest.Plan) error {
	switch {
	case s.sampled() && (plan.Threads != nil || plan.BothWays > 0):
		return errors.New("plan: what is drawn at random is another text each time: sampled texts are not asked on another number of threads, nor streamed and whole")
	case s.Criteria.Noise == nil && plan.Threads != nil:
		return errors.New("plan: threads are varied from version 2 of the criteria on")
	case !s.ofTexts() && plan.BothWays > 0:
		return errors.New("plan: only texts can be streamed, and so be asked both ways")
	}
	return nil
}

// probes returns those of a plan, in the order in which they are sent. They
// follow from suite and plan alone, so whoever judges knows what was asked.
func (s *Suite) probes(plan attest.Plan, p target.Protocol) ([]probe, error) {
	if err := s.askable(plan); err != nil {
		return nil, err
	}
	if s.sampled() {
		return nil, nil // to be asked again is what its cases are for
	}
	var chosen []attest.Case
	for _, c := range s.Cases {
		if c.Stratum == attest.StratumClaim && len(chosen) < plan.Probes {
			chosen = append(chosen, c)
		}
	}
	var list []probe
	add := func(kind string, cases []attest.Case, id string, inputs []compare.Tensor) error {
		q, _, _ := s.question(cases[0], plan.Target)
		q.ID, q.Inputs = id, inputs
		request, err := p.Encode(q)
		if err != nil {
			return fmt.Errorf("probe %s of case %s: %w", kind, cases[0].ID, err)
		}
		list = append(list, probe{kind, cases, q, request})
		return nil
	}
	for _, c := range chosen {
		_, inputs, _ := s.question(c, plan.Target)
		if err := add(attest.ProbeRepeat, []attest.Case{c}, c.ID, inputs); err != nil {
			return nil, err
		}
		if plan.Threads != nil {
			if err := add(attest.ProbeThreads, []attest.Case{c}, c.ID, inputs); err != nil {
				return nil, err
			}
		}
		if s.ofRequests() {
			continue // a text has no neighbour that means the same
		}
		if err := add(attest.ProbeULP, []attest.Case{c}, c.ID, nudged(inputs)); err != nil {
			return nil, err
		}
	}
	if s.ofTexts() {
		ways, err := s.waysProbes(plan, p)
		return append(list, ways...), err
	}
	if s.ofEmbeddings() {
		return s.probesInBatches(list, chosen, plan, p)
	}
	for group := range slices.Chunk(chosen, batchSize) {
		var inputs [][]compare.Tensor
		for _, c := range group {
			_, in, _ := s.question(c, plan.Target)
			inputs = append(inputs, in)
		}
		joined, ok := join(inputs)
		if len(group) < 2 || !ok {
			continue
		}
		if err := add(attest.ProbeBatch, group, "batch", joined); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// join makes one batch of questions, if each is a batch of one.
func join(inputs [][]compare.Tensor) (joined []compare.Tensor, ok bool) {
	joined = slices.Clone(inputs[0])
	for i := range joined {
		joined[i].Bits, joined[i].Shape = nil, slices.Clone(joined[i].Shape)
		for _, in := range inputs {
			if len(in[i].Shape) == 0 || in[i].Shape[0] != 1 || !slices.Equal(in[i].Shape, inputs[0][i].Shape) {
				return nil, false
			}
			joined[i].Bits = append(joined[i].Bits, in[i].Bits...)
		}
		joined[i].Shape[0] = int64(len(inputs))
	}
	return joined, true
}

// split takes the answer to a batch of n questions apart.
func split(out []compare.Tensor, n int) ([][]compare.Tensor, error) {
	answers := make([][]compare.Tensor, n)
	for _, t := range out {
		if len(t.Shape) == 0 || t.Shape[0] != int64(n) || len(t.Bits)%n != 0 {
			return nil, fmt.Errorf("output %s has shape %v for %d questions", t.Name, t.Shape, n)
		}
		row := len(t.Bits) / n
		for i := range answers {
			one := t
			one.Shape = slices.Clone(t.Shape)
			one.Shape[0] = 1
			one.Bits = t.Bits[i*row : (i+1)*row]
			answers[i] = append(answers[i], one)
		}
	}
	return answers, nil
}

// nudged moves every element of a float type by one unit in the last place, away
// from zero. Other types have no neighbour that means the same.
func nudged(inputs []compare.Tensor) []compare.Tensor {
	out := slices.Clone(inputs)
	for i, t := range out {
		bits := slices.Clone(t.Bits)
		switch t.Datatype {
		case "FP16", "BF16":
			infinite := uint16(0x7c00)
			if t.Datatype == "BF16" {
				infinite = 0x7f80
			}
			for j := 0; j+2 <= len(bits); j += 2 {
				if u := binary.LittleEndian.Uint16(bits[j:]); u<<1 != 0 && (u+1)&0x7fff < infinite {
					binary.LittleEndian.PutUint16(bits[j:], u+1)
				}
			}
		case "FP32":
			for j := 0; j+4 <= len(bits); j += 4 {
				u := binary.LittleEndian.Uint32(bits[j:])
				if v := math.Float32frombits(u + 1); u<<1 != 0 && !math.IsInf(float64(v), 0) {
					binary.LittleEndian.PutUint32(bits[j:], u+1)
				}
			}
		case "FP64":
			for j := 0; j+8 <= len(bits); j += 8 {
				u := binary.LittleEndian.Uint64(bits[j:])
				if v := math.Float64frombits(u + 1); u<<1 != 0 && !math.IsInf(v, 0) {
					binary.LittleEndian.PutUint64(bits[j:], u+1)
				}
			}
		}
		out[i].Bits = bits
	}
	return out
}

// measureNoise computes the candidate's noise floor: the largest difference
// between its first answer to a case and its answers to the probes of it. A
// probe that did not get an answer leaves the floor unmeasured, which is not a
// floor of zero.
func (j *judge) measureNoise(observed map[string][]*attest.Observation) error {
	r := j.r
	if j.sampling != nil {
		return nil // the floor is between halves of the samples
	}
	list, err := r.Suite.probes(r.Plan, j.protocol)
	if err != nil {
		return err
	}
	j.planned = map[string]bool{}
	for _, p := range list {
		j.planned[probeKey(p.kind, p.cases[0].ID)] = true
	}
	// Those that are asked the other way are no noise probes.
	var ways []probe
	list = slices.DeleteFunc(list, func(p probe) bool {
		if p.kind == attest.ProbeOtherWay {
			ways = append(ways, p)
		}
		return p.kind == attest.ProbeOtherWay
	})
	counts := &attest.ProbeCounts{Planned: len(list)}
	j.report.Probes = counts
	moved := false
	switch {
	case r.Plan.Probes == 0:
		j.fallsShort("the candidate's noise floor was not measured: the plan has no probes")
	case r.Suite.ofTexts():
		moved = j.textNoise(list, observed)
	}
	if r.Suite.ofTexts() {
		j.bothWays(ways, observed, moved)
	}
	if r.Plan.Probes == 0 || r.Suite.ofTexts() {
		return nil
	}
	threads := j.varied()
	answers := map[string][]compare.Tensor{} // to the cases themselves
	baseline := func(c attest.Case) []compare.Tensor {
		if a, ok := answers[c.ID]; ok {
			return a
		}
		q, _, _ := r.Suite.question(c, r.Plan.Target)
		if o := answered(observed[c.ID]); o != nil && o.Error == nil {
			if a, err := j.protocol.Decode(q, responseOf(o)); err == nil {
				answers[c.ID] = a.Outputs
			}
		}
		return answers[c.ID]
	}
	for _, p := range list {
		if err := j.probe(p, observed[probeKey(p.kind, p.cases[0].ID)], baseline); err != nil {
			if counts.Failed++; counts.Failed == 1 {
				j.example(p.cases[0].ID, "probe "+p.kind, err.Error())
			}
			continue
		}
		counts.Used++
		if p.kind == attest.ProbeThreads {
			threads.Compared++
		}
	}
	if counts.Failed > 0 {
		j.fallsShort("the candidate's noise floor was not measured: %d of %d probes got no answer that can be compared", counts.Failed, counts.Planned)
	}
	for i := range j.numerics {
		n := &j.numerics[i]
		if threads != nil {
			j.spread(threads, n.criteria.Output, n.threads)
		}
		reference := r.Suite.Document.Reference.Noise[n.criteria.Output]
		ratio := r.Suite.Criteria.Noise.Ratio
		own := n.noise
		if threads != nil && threads.Benign {
			own = math.Max(own, n.threads)
		}
		floor := math.Max(reference, math.Min(own, float64(ratio*reference)))
		n.tolerance.Absolute = math.Max(n.criteria.Absolute, float64(n.criteria.NoiseFactor*floor))
		n.summary.CandidateNoise = format(own)
		if most := math.Max(float64(ratio*reference), n.criteria.Absolute); n.noise > most {
			j.noisy = true
			j.differs("%s is noisier than the reference: its answers spread by %s, at most %s is allowed", n.criteria.Output, format(n.noise), format(most))
		}
	}
	return nil
}

// probeKey is where the observations of a probe are kept. No case id has a
// slash in it.
func probeKey(kind, id string) string { return kind + "/" + id }

// answered returns the first attempt of which the runner saw the end, or nil.
func answered(list []*attest.Observation) *attest.Observation {
	for n := 1; ; n++ {
		i := slices.IndexFunc(list, func(o *attest.Observation) bool { return o.Attempt == n })
		if i < 0 {
			return nil
		}
		if o := list[i]; o.Error == nil || o.Error.Class != attest.Interrupted {
			return o
		}
	}
}

// probeAnswer decodes the answer to a probe.
func (j *judge) probeAnswer(p probe, list []*attest.Observation) (*target.Answer, error) {
	o := answered(list)
	if o == nil || o.Attempt != len(list) {
		return nil, fmt.Errorf("its record does not hold together: %d attempts", len(list))
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Request != string(digest.FromBytes(p.request)) {
		return nil, fmt.Errorf("other bytes were sent than were planned")
	}
	if o.Error != nil {
		return nil, fmt.Errorf("%s: %s", o.Error.Class, o.Error.Message)
	}
	return j.protocol.Decode(p.question, responseOf(o))
}

// probe takes up what one probe showed.
func (j *judge) probe(p probe, list []*attest.Observation, baseline func(attest.Case) []compare.Tensor) error {
	a, err := j.probeAnswer(p, list)
	if err != nil {
		return err
	}
	all := [][]compare.Tensor{a.Outputs}
	if p.kind == attest.ProbeBatch {
		if all, err = split(a.Outputs, len(p.cases)); err != nil {
			return err
		}
	}
	for i, c := range p.cases {
		want := baseline(c)
		if want == nil {
			return fmt.Errorf("case %s has no first answer to compare with", c.ID)
		}
		for k := range want {
			if d := compare.Within(want[k], all[i][k], compare.Tolerance{}); d.Fault != "" {
				return fmt.Errorf("%s", d.Broken)
			}
			for m := range j.numerics {
				if n := &j.numerics[m]; n.criteria.Output == want[k].Name {
					x, err := n.spread(want[k], all[i][k])
					if err != nil {
						return err
					}
					if p.kind == attest.ProbeThreads {
						n.threads = math.Max(n.threads, x)
					} else {
						n.noise = math.Max(n.noise, x)
					}
				}
			}
		}
	}
	return nil
}
