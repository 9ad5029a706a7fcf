// Package conformance measures whether a model behaves in an environment as
// it does in the reference environment, and says so with an error rate.
//
// The claim is equivalence with a stated margin, never "no difference was
// found". It is made in steps that are kept apart: a golden [Suite] is
// recorded once ([Record]); a plan is written down before the first request
// ([NewPlan]); [Replay] only observes, and keeps every attempt as it was on
// the wire; [Judge] is a pure function of suite, plan and observations, so
// anybody can make the verdict again, offline, to the same bytes; [Certify]
// judges again and states the outcome.
package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// A Suite is golden inputs and what the reference answered.
type Suite struct {
	Document attest.Suite
	Criteria attest.Criteria
	Cases    []attest.Case
	Tensors  map[string]compare.Tensor // by the names of attest.Case
	Texts    map[string]attest.Text    // of a suite of texts or embeddings, by case

	// digest and criteria are those of the artifact that the suite was read from,
	// "" if it was not: a suite that was read is not to be changed.
	digest, criteria digest.Digest
}

// A Candidate is an input from which cases are drawn: a line of a file of
// cases. It asks with tensors or with a request.
type Candidate struct {
	ID     string                     `json:"id"`
	Inputs map[string]CandidateTensor `json:"inputs,omitempty"`
	Label  string                     `json:"label,omitempty"`
	Slice  map[string]string          `json:"slice,omitempty"`

	// Cluster is shared by cases that are not independent of each other.
	Cluster string `json:"cluster,omitempty"`

	// Request is an object in the words of the protocol that is spoken to the
	// reference. It does not name the model.
	Request json.RawMessage `json:"request,omitempty"`

	// Outputs are golden ones that came with the case. Stratum says that it
	// is to be a claim or a border case, and may be "".
	Outputs map[string]CandidateTensor `json:"outputs,omitempty"`
	Stratum string                     `json:"stratum,omitempty"`

	// Sealed says that it is to be in the sealed part of a suite.
	Sealed bool `json:"sealed,omitempty"`
}

// A CandidateTensor is an input tensor, written as numbers.
type CandidateTensor struct {
	Datatype string        `json:"datatype"`
	Shape    []int64       `json:"shape"`
	Data     []json.Number `json:"data"`
}

// ReadCandidates reads a file of cases (JSON lines), strictly.
func ReadCandidates(r io.Reader) ([]Candidate, error) {
	var list []Candidate
	seen := map[string]bool{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, attest.MaxDocument)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var c Candidate
		if err := attest.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("cases, line %d: %w", n, err)
		}
		switch {
		case c.ID == "" || strings.ContainsAny(c.ID, "/\n"):
			return nil, fmt.Errorf("cases, line %d: id %q is empty or has a slash in it", n, c.ID)
		case seen[c.ID]:
			return nil, fmt.Errorf("cases, line %d: id %q is used twice", n, c.ID)
		case c.Stratum != "" && c.Stratum != attest.StratumClaim && c.Stratum != attest.StratumBorder:
			return nil, fmt.Errorf("cases, line %d: stratum %q is unknown: use %s or %s", n, c.Stratum, attest.StratumClaim, attest.StratumBorder)
		case len(c.Inputs) == 0 && c.Request == nil:
			return nil, fmt.Errorf("cases, line %d: case %s has no inputs", n, c.ID)
		case c.Request != nil && len(c.Inputs)+len(c.Outputs) > 0:
			return nil, fmt.Errorf("cases, line %d: case %s has a request, and tensors beside it", n, c.ID)
		case len(list) > 0 && (list[0].Request == nil) != (c.Request == nil):
			return nil, fmt.Errorf("cases, line %d: case %s asks with a request or with tensors, and case %s the other way", n, c.ID, list[0].ID)
		}
		seen[c.ID] = true
		list = append(list, c)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cases: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("cases: there are none in the file")
	}
	return list, nil
}

func (t CandidateTensor) tensor(name string) (compare.Tensor, error) {
	out := compare.Tensor{Name: name, Datatype: t.Datatype, Shape: t.Shape}
	integer := strings.Contains(t.Datatype, "INT") || t.Datatype == "BOOL"
	for i, n := range t.Data {
		if integer {
			var err error
			if out.Bits, err = appendInteger(out.Bits, t.Datatype, n.String()); err != nil {
				return out, fmt.Errorf("input %s: element %d: %w", name, i, err)
			}
			continue
		}
		v, err := n.Float64()
		if err != nil {
			return out, fmt.Errorf("input %s: element %d: %w", name, i, err)
		}
		// The golden value is the nearest one of its type: that is what is stored,
		// as bits, and sent.
		if out.Bits, err = compare.AppendFloat(out.Bits, t.Datatype, v); err != nil {
			return out, fmt.Errorf("input %s: element %d: %w", name, i, err)
		}
	}
	_, err := out.Values()
	return out, err
}

// appendInteger appends an integer in its type, or says why it is none of it.
func appendInteger(bits []byte, datatype, text string) ([]byte, error) {
	width := compare.Width(datatype)
	var v uint64
	switch {
	case width == 0:
		return nil, fmt.Errorf("datatype %q is not known", datatype)
	case datatype == "BOOL":
		if text != "0" && text != "1" {
			return nil, fmt.Errorf("%s is no BOOL; write 0 or 1", text)
		}
		v = uint64(text[0] - '0')
	case strings.HasPrefix(datatype, "U"):
		var err error
		if v, err = strconv.ParseUint(text, 10, 8*width); err != nil {
			return nil, err
		}
	default:
		i, err := strconv.ParseInt(text, 10, 8*width)
		if err != nil {
			return nil, err
		}
		v = uint64(i)
	}
	for range width {
		bits = append(bits, byte(v))
		v >>= 8
	}
	return bits, nil
}

// RecordOptions say what to record.
type RecordOptions struct {
	Name               string
	Model              attest.Resource // what the reference serves
	Target             attest.Target
	Candidates         []Candidate
	Claim, Border      int
	Criteria           attest.Criteria      // Outputs[0].Decision is what border cases are near to
	Threads            *attest.OtherThreads // a second endpoint of the reference on another number of threads (see [FindThreads])
	DataClassification string
	Accepted           []AcceptedTarget // further references of sampled texts
	Clock              func() time.Time
	Progress           func(done int) // called after each request
}

// Requests is how many requests Record makes, for progress.
func (o RecordOptions) Requests() int {
	again := 3
	if o.Criteria.Text != nil && o.Criteria.Text.Sampled != nil && len(o.Candidates) > 0 {
		n, err := choicesOf(*o.Criteria.Text.Sampled, string(o.Candidates[0].Request))
		if err != nil {
			n = 1
		}
		return o.Claim * (o.Criteria.Text.Sampled.Samples / n) * (1 + len(o.Accepted))
	}
	switch {
	case o.Criteria.Text != nil:
		again = 1
	case len(o.Candidates) > 0 && o.Candidates[0].Request != nil:
		again = 2 // an embedding, once more and in a batch
	}
	if o.Threads != nil {
		again++
	}
	if t := o.Criteria.Text; t != nil && t.BothWays {
		again++
	}
	return len(o.Candidates) + again*(o.Claim+o.Border)
}

// batchSize is how many cases are asked together to see whether a batch
// changes the answers.
const batchSize = 8

// Record draws a suite from the candidates and records what the reference
// answers: Claim cases at random, or so many clusters of them (seeded by the candidates themselves, so
// that it can be done again), and of the rest the Border ones that lie
// nearest to the decision. Then it measures the reference's noise floor:
// every case is asked again, with each input moved by one unit in the last
// place, and in batches with others. Texts are asked again, which is all that is
// known to change nothing that matters in them.
func Record(ctx context.Context, tg target.Target, opt RecordOptions) (*Suite, error) {
	if opt.Claim <= 0 || opt.Border < 0 {
		return nil, errors.New("a suite needs claim cases")
	}
	if len(opt.Candidates) < opt.Claim+opt.Border {
		return nil, fmt.Errorf("%d cases are asked for (%d claim, %d border) and the file has %d", opt.Claim+opt.Border, opt.Claim, opt.Border, len(opt.Candidates))
	}
	if err := noClusters(opt.Candidates, opt.Criteria); err != nil {
		return nil, err
	}
	d, err := tg.Describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("the reference: %w", err)
	}
	if opt.Threads != nil && opt.Criteria.Noise == nil {
		return nil, errors.New("threads are varied from version 2 of the criteria on")
	}
	if opt.Criteria.Text != nil && opt.Criteria.Text.Sampled != nil {
		if opt.Threads != nil {
			return nil, errors.New("threads are not varied for sampled texts: what is drawn at random is another text each time")
		}
		return recordSampled(ctx, tg, d, opt)
	}
	if len(opt.Accepted) > 0 {
		return nil, errors.New("accepted references beside the first are of sampled texts")
	}
	if opt.Criteria.Text != nil {
		return recordTexts(ctx, tg, d, opt)
	}
	if opt.Candidates[0].Request != nil && nearestOf(opt.Criteria) != "" {
		return recordEmbeddings(ctx, tg, d, opt)
	}
	if opt.Candidates[0].Request != nil {
		return nil, errors.New("the cases ask with requests, and the criteria are of tensors: say what must not flip in a text")
	}
	if len(d.Inputs) == 0 || len(d.Outputs) == 0 {
		return nil, fmt.Errorf("the reference does not say what the inputs and outputs of %s are", opt.Target.Model)
	}
	rec := &recorder{ctx: ctx, tg: tg, opt: opt}
	for _, o := range d.Outputs {
		rec.outputs = append(rec.outputs, o.Name)
	}
	s := &Suite{Criteria: opt.Criteria, Tensors: map[string]compare.Tensor{}}
	s.Document = attest.Suite{
		Name: opt.Name, Model: opt.Model, Protocol: opt.Target.Protocol, DataClassification: opt.DataClassification,
		Claim: opt.Claim, Border: opt.Border, CreatedAt: opt.Clock().UTC(),
		Reference: attest.Reference{
			ServedModel: d.Model, ServedVersion: opt.Target.Version, Platform: d.Platform, RecordedAt: opt.Clock().UTC(),
			Noise: map[string]float64{}, Perturbations: []string{"asked again", "inputs moved by one unit in the last place", fmt.Sprintf("in batches of %d", batchSize)},
			Measured: opt.Claim + opt.Border,
		},
	}
	for _, i := range d.Inputs {
		s.Document.Inputs = append(s.Document.Inputs, attest.TensorSpec(i))
	}
	for _, o := range d.Outputs {
		s.Document.Outputs = append(s.Document.Outputs, attest.TensorSpec(o))
	}

	type asked struct {
		Candidate
		inputs, outputs []compare.Tensor
		distance        float64
		request         []byte
	}
	nearest := nearestOf(opt.Criteria)
	all := make([]asked, len(opt.Candidates))
	for i, c := range opt.Candidates {
		a := asked{Candidate: c}
		for _, spec := range s.Document.Inputs {
			in, ok := c.Inputs[spec.Name]
			if !ok || len(c.Inputs) != len(s.Document.Inputs) {
				return nil, fmt.Errorf("case %s: its inputs are not those of the model (%s is needed)", c.ID, spec.Name)
			}
			t, err := in.tensor(spec.Name)
			if err != nil {
				return nil, fmt.Errorf("case %s: %w", c.ID, err)
			}
			a.inputs = append(a.inputs, t)
		}
		if a.request, a.outputs, err = rec.ask(c.ID, a.inputs); err != nil {
			return nil, fmt.Errorf("the reference, case %s: %w", c.ID, err)
		}
		if err := brought(c, opt.Criteria, a.outputs); err != nil {
			return nil, fmt.Errorf("case %s: %w", c.ID, err)
		}
		if nearest == "" {
			decision, err := decide(opt.Criteria.Outputs[0], a.outputs)
			if err != nil {
				return nil, fmt.Errorf("the reference, case %s: %w", c.ID, err)
			}
			a.distance = decision.distance
		}
		all[i] = a
	}

	// The order of the draw follows from the inputs alone.
	seed := sha256.New()
	for _, a := range all {
		seed.Write(a.request)
	}
	var chosen []asked
	var border map[string]bool
	if nearest == "" {
		chosen, border, err = drawUnits(all, [32]byte(seed.Sum(nil)), opt.Claim, opt.Border, func(a asked) string { return a.Cluster }, func(a asked) (string, string, float64) { return a.ID, a.Stratum, a.distance })
	} else {
		chosen, border, err = drawNearest(all, [32]byte(seed.Sum(nil)), opt.Claim, opt.Border, func(a asked) (string, string, compare.Tensor) { return a.ID, a.Stratum, named(a.outputs, nearest) })
	}
	if err != nil {
		return nil, err
	}
	s.Document.Claim, s.Document.Reference.Measured = len(chosen)-len(border), len(chosen)

	for _, a := range chosen {
		c := attest.Case{ID: a.ID, Stratum: attest.StratumClaim, Label: a.Label, Cluster: a.Cluster, Slice: a.Slice, Request: string(digest.FromBytes(a.request))}
		if border[a.ID] {
			c.Stratum = attest.StratumBorder
		}
		for _, t := range a.inputs {
			s.Tensors[c.InputTensor(t.Name)] = t
		}
		for _, t := range a.outputs {
			s.Tensors[c.OutputTensor(t.Name)] = t
		}
		s.Cases = append(s.Cases, c)
	}

	// The noise floor.
	for _, name := range rec.outputs {
		s.Document.Reference.Noise[name] = 0
	}
	note := func(want, got []compare.Tensor) error {
		off, err := s.off(want, got)
		for name, x := range off {
			s.Document.Reference.Noise[name] = math.Max(s.Document.Reference.Noise[name], x)
		}
		return err
	}
	for _, a := range chosen {
		for _, inputs := range [][]compare.Tensor{a.inputs, nudged(a.inputs)} {
			_, got, err := rec.ask(a.ID, inputs)
			if err == nil {
				err = note(a.outputs, got)
			}
			if err != nil {
				return nil, fmt.Errorf("noise floor of the reference, case %s: %w", a.ID, err)
			}
		}
	}
	for i := 0; i < len(chosen); i += batchSize {
		batch := chosen[i:min(i+batchSize, len(chosen))]
		var inputs [][]compare.Tensor
		for _, a := range batch {
			inputs = append(inputs, a.inputs)
		}
		answers, err := rec.askBatch(inputs)
		for j := 0; err == nil && j < len(batch); j++ {
			err = note(batch[j].outputs, answers[j])
		}
		if err != nil {
			return nil, fmt.Errorf("noise floor of the reference, in a batch: %w", err)
		}
	}
	if err := rec.vary(s, len(chosen), func(there *recorder, i int) (map[string]float64, error) {
		_, got, err := there.ask(chosen[i].ID, chosen[i].inputs)
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", chosen[i].ID, err)
		}
		return s.off(chosen[i].outputs, got)
	}); err != nil {
		return nil, err
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// brought says why the golden outputs that came with a case are not what the
// reference answers. What is recorded is the reference's answer; a case that
// brings another one was made for another model, or this is no reference.
func brought(c Candidate, criteria attest.Criteria, answered []compare.Tensor) error {
	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		want, err := c.Outputs[name].tensor(name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(answered, func(t compare.Tensor) bool { return t.Name == name })
		if i < 0 {
			return fmt.Errorf("it brings a golden output %s, which the reference does not have; leave it out", name)
		}
		var tol compare.Tolerance
		for _, o := range criteria.Outputs {
			if o.Output == name {
				tol = compare.Tolerance{Absolute: o.Absolute, Relative: o.Relative}
			}
		}
		switch d := compare.Tensors(want, answered[i], tol); {
		case d.Broken != "":
			return fmt.Errorf("it brings a golden output that does not compare with what the reference answers: %s", d.Broken)
		case d.Exceeding > 0:
			return fmt.Errorf("it brings a golden output %s, and the reference answers another: %d of %d numbers differ by more than the tolerance, at most by %s; push the draft with the outputs it brings ('assay suite push'), or leave them out",
				name, d.Exceeding, d.Elements, stats.Format(d.MaxAbs))
		}
	}
	return nil
}

type recorder struct {
	ctx     context.Context
	tg      target.Target
	opt     RecordOptions
	outputs []string
}

// ask asks one question with tensors.
func (r *recorder) ask(id string, inputs []compare.Tensor) (request []byte, outputs []compare.Tensor, err error) {
	request, a, err := r.send(target.Question{ID: id, Model: r.opt.Target.Model, Version: r.opt.Target.Version, Inputs: inputs, Outputs: r.outputs})
	if err != nil {
		return nil, nil, err
	}
	return request, a.Outputs, nil
}

// send sends a question, and takes nothing but an answer.
func (r *recorder) send(q target.Question) (request []byte, a *target.Answer, err error) {
	if request, err = r.tg.Encode(q); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	x := r.tg.Send(ctx, request)
	if x.Failure != nil {
		return nil, nil, x.Failure
	}
	if a, err = r.tg.Decode(q, x.Response); err != nil {
		return nil, nil, err
	}
	if r.opt.Progress != nil {
		r.opt.Progress(1)
	}
	return request, a, nil
}

// askBatch asks several questions in one request and takes the answer apart.
func (r *recorder) askBatch(inputs [][]compare.Tensor) ([][]compare.Tensor, error) {
	joined, ok := join(inputs)
	if !ok {
		return nil, errors.New("the questions cannot be asked together: their first dimension is not a batch of one")
	}
	_, out, err := r.ask("batch", joined)
	if err != nil {
		return nil, err
	}
	if r.opt.Progress != nil {
		r.opt.Progress(len(inputs) - 1)
	}
	return split(out, len(inputs))
}

// embedded reports whether an output is compared as an embedding.
func (s *Suite) embedded(output string) bool {
	return slices.ContainsFunc(s.Criteria.Outputs, func(c attest.OutputCriteria) bool {
		return c.Output == output && c.Decision.Kind == attest.DecideNearest
	})
}

// named returns the tensor of a name; one without any if it is not there.
func named(outputs []compare.Tensor, name string) compare.Tensor {
	for _, t := range outputs {
		if t.Name == name {
			return t
		}
	}
	return compare.Tensor{Name: name}
}

// A choice is a decision as it was taken: the labels that were chosen, by their
// indices, which are in order.
type choice struct {
	labels   []int
	distance float64 // from another decision
}

// words names it.
func (c choice) words(d attest.Decision) string {
	var names []string
	for _, i := range c.labels {
		names = append(names, d.Labels[i])
	}
	return strings.Join(names, "+")
}

// decide turns outputs into a decision.
func decide(c attest.OutputCriteria, outputs []compare.Tensor) (choice, error) {
	i := slices.IndexFunc(outputs, func(t compare.Tensor) bool { return t.Name == c.Output })
	if i < 0 {
		return choice{}, fmt.Errorf("output %q, which decides, is missing", c.Output)
	}
	values, err := outputs[i].Values()
	if err != nil {
		return choice{}, err
	}
	if c.Decision.Kind == attest.DecideThreshold {
		at, distance, err := compare.Threshold(values, c.Decision.Index, c.Decision.Threshold)
		return choice{[]int{at}, distance}, err
	}
	if len(values) != len(c.Decision.Labels) {
		return choice{}, fmt.Errorf("output %q has %d elements for %d labels", c.Output, len(values), len(c.Decision.Labels))
	}
	if c.Decision.Kind == attest.DecideTopK {
		list, margin, err := compare.TopK(values, c.Decision.K)
		slices.Sort(list)
		return choice{list, margin}, err
	}
	at, margin, err := compare.Label(values)
	return choice{[]int{at}, margin}, err
}

// validate checks that the parts of a suite fit together, and that all of it
// is there: a sealed part must have been opened.
func (s *Suite) validate() error {
	if n := s.Closed(); n > 0 {
		return fmt.Errorf("suite: %d of %d cases are sealed, and the sealed part was not given", n, len(s.Cases))
	}
	return s.check()
}

// check checks that the parts of a suite fit together, as far as they are
// open.
func (s *Suite) check() error {
	if err := s.Document.Validate(); err != nil {
		return err
	}
	if err := s.Criteria.Validate(); err != nil {
		return err
	}
	p := s.Criteria.Plan
	if !s.sampled() && !stats.Keeps(p.N, p.Allowed, p.Margin, p.Alpha) {
		return fmt.Errorf("criteria: %d of %d allowed does not exclude a rate of %v with alpha %v", p.Allowed, p.N, p.Margin, p.Alpha)
	}
	clusters, clustered := s.units()
	switch {
	case clustered && s.Criteria.Version < 4:
		return errors.New("criteria: clusters of cases are of version 4")
	case s.Closed() > 0 && p.N <= s.Document.Claim: // whose clusters are not known yet
	case p.N != clusters && clustered:
		return fmt.Errorf("criteria: the plan is for %d clusters and the suite has %d claim cases in %d: cases of one cluster count once", p.N, s.Document.Claim, clusters)
	case p.N != clusters:
		return fmt.Errorf("criteria: the plan is for %d cases and the suite has %d claim cases", p.N, s.Document.Claim)
	}
	if len(s.Document.Accepted) > 0 && !s.sampled() {
		return errors.New("suite: accepted references beside the first are of sampled texts")
	}
	if s.ofTexts() != (s.Criteria.Text != nil) {
		return errors.New("suite: criteria of texts are for a suite of texts, and those of outputs for one of tensors")
	}
	counts := map[string]int{}
	last := ""
	for _, c := range s.Cases {
		counts[c.Stratum]++
		if c.ID <= last {
			return fmt.Errorf("suite: case %q is out of order or there twice", c.ID)
		}
		last = c.ID
		if isClosed(c) {
			if c.Label != "" || len(c.Slice) > 0 || c.Cluster != "" {
				return fmt.Errorf("suite: sealed case %s says more than its digest", c.ID)
			}
			if err := digest.Digest(c.Sealed).Validate(); err != nil {
				return fmt.Errorf("suite: sealed case %s: %w", c.ID, err)
			}
			continue
		}
		for _, i := range s.Document.Inputs {
			if _, ok := s.Tensors[c.InputTensor(i.Name)]; !ok {
				return fmt.Errorf("suite: case %s has no input %s", c.ID, i.Name)
			}
		}
		for _, o := range s.Document.Outputs {
			if _, ok := s.Tensors[c.OutputTensor(o.Name)]; !ok {
				return fmt.Errorf("suite: case %s has no golden output %s", c.ID, o.Name)
			}
		}
	}
	if counts[attest.StratumClaim] != s.Document.Claim || counts[attest.StratumBorder] != s.Document.Border || len(s.Cases) != s.Document.Claim+s.Document.Border {
		return fmt.Errorf("suite: it says %d claim and %d border cases and has %v", s.Document.Claim, s.Document.Border, counts)
	}
	if s.ofTexts() {
		if err := s.checkTexts(); err != nil {
			return err
		}
	}
	if err := s.checkEmbeddings(); err != nil {
		return err
	}
	if err := s.attainable(); err != nil {
		return err
	}
	if err := s.checkAccuracy(); err != nil {
		return err
	}
	if err := s.checkThreads(); err != nil {
		return err
	}
	for _, c := range s.Criteria.Outputs {
		if !slices.ContainsFunc(s.Document.Outputs, func(o attest.TensorSpec) bool { return o.Name == c.Output }) {
			return fmt.Errorf("criteria: the suite has no output %q", c.Output)
		}
	}
	for _, l := range s.Criteria.Limits {
		if l.Output != "" && !slices.ContainsFunc(s.Criteria.Outputs, func(o attest.OutputCriteria) bool { return o.Output == l.Output }) {
			return fmt.Errorf("criteria: %s is limited for output %q, which is not compared", l.Measure, l.Output)
		}
	}
	return nil
}

// attainable says why limits on delays could never be shown, however fast an
// environment is, or nil. Holm lets the best of k hypotheses pass at alpha/k.
func (s *Suite) attainable() error {
	delays, of := 0, ""
	for _, l := range s.Criteria.Limits {
		if (&limit{Limit: l}).delayed() != "" {
			delays++
			of = l.Measure
		}
	}
	if s.Criteria.Version < 3 || delays == 0 {
		return nil
	}
	need, err := stats.SmallestN(0, slowShare, s.Criteria.Plan.Alpha/float64(delays))
	if err != nil {
		return err
	}
	if len(s.Cases) < need {
		return fmt.Errorf("criteria: %d limits on delays (%s) take at least %d cases to be shown, and the suite has %d: that 99 %% come in time is seen in no fewer", delays, of, need, len(s.Cases))
	}
	return nil
}

// question returns what a case asks.
func (s *Suite) question(c attest.Case, t attest.Target) (q target.Question, inputs, golden []compare.Tensor) {
	q = target.Question{ID: c.ID, Model: t.Model, Version: t.Version}
	if s.ofRequests() {
		q.Request = json.RawMessage(s.Texts[c.ID].Request)
	}
	if s.sampled() {
		q.Request = drawRequest(*s.Criteria.Text.Sampled, s.Texts[c.ID].Request, whoEnvironment, c.ID)
	}
	for _, i := range s.Document.Inputs {
		inputs = append(inputs, s.Tensors[c.InputTensor(i.Name)])
	}
	q.Inputs = inputs
	for _, o := range s.Document.Outputs {
		q.Outputs = append(q.Outputs, o.Name)
		golden = append(golden, s.Tensors[c.OutputTensor(o.Name)])
	}
	return q, inputs, golden
}

// order is the digest of the list of case ids in the order they are sent.
func (s *Suite) order() string {
	h := sha256.New()
	for _, c := range s.Cases {
		io.WriteString(h, c.ID+"\n")
	}
	return string(digest.NewDigest(digest.SHA256, h))
}
