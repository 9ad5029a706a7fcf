package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// ofEmbeddings reports whether the cases ask with requests and are answered by
// one vector each.
func (s *Suite) ofEmbeddings() bool { return s.Document.Kind == attest.KindEmbeddings }

// ofRequests reports whether the cases ask with requests.
func (s *Suite) ofRequests() bool { return s.ofTexts() || s.ofEmbeddings() }

// indexed is how many golden vectors the nearest are looked for among: a suite
// of many cases must not take their square.
const indexed = 1024

// near10 is how many neighbours the overlap is of.
const near10 = 10

// An index is the golden vectors of claim cases, the first by id, as a search
// would hold them. Border cases are not in it: they were chosen by it.
type index struct {
	*compare.Neighbours
	ids []string
	at  map[string]int // by case
}

// newIndex makes the index of an output. vectors are its claim cases' golden
// ones by case.
func newIndex(vectors map[string]compare.Tensor) (*index, error) {
	x := &index{at: map[string]int{}}
	var list [][]float64
	for _, id := range slices.Sorted(maps.Keys(vectors)) {
		if len(list) == indexed {
			break
		}
		v, err := vector(vectors[id])
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", id, err)
		}
		x.at[id] = len(list)
		list, x.ids = append(list, v), append(x.ids, id)
	}
	var err error
	x.Neighbours, err = compare.NewNeighbours(list)
	return x, err
}

// around is [compare.Neighbours.Around] for a vector of a case.
func (x *index) around(id string, v []float64) (compare.Neighbourhood, error) {
	without, ok := x.at[id]
	if !ok {
		without = -1
	}
	return x.Around(v, near10, without)
}

// vector returns the numbers of a tensor that is one embedding.
func vector(t compare.Tensor) ([]float64, error) {
	values, err := t.Values()
	if err != nil {
		return nil, err
	}
	if n := len(t.Shape); n == 0 || t.Shape[n-1] != int64(len(values)) || len(values) < 2 {
		return nil, fmt.Errorf("output %s has shape %v: an embedding is one vector, and a case asks for one", t.Name, t.Shape)
	}
	return values, nil
}

// nearestOf is the output whose nearest neighbours decide, of criteria whose
// first output does; else "".
func nearestOf(c attest.Criteria) string {
	if len(c.Outputs) > 0 && c.Outputs[0].Decision.Kind == attest.DecideNearest {
		return c.Outputs[0].Output
	}
	return ""
}

// leads returns how near each case is to another nearest neighbour, by case:
// claim are the claim cases, and all also those that may become border cases.
func leads(claim, all map[string]compare.Tensor) (map[string]float64, error) {
	x, err := newIndex(claim)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		v, err := vector(all[id])
		if err == nil {
			var h compare.Neighbourhood
			h, err = x.around(id, v)
			out[id] = h.Lead
		}
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", id, err)
		}
	}
	return out, nil
}

// drawNearest is draw for criteria that decide by the nearest neighbour. Claim
// cases are drawn first, without a look at their vectors; who is near to another
// decision follows from them.
func drawNearest[T any](all []T, seed [32]byte, claim, border int, about func(T) (id, stratum string, embedding compare.Tensor)) ([]T, map[string]bool, error) {
	chosen, _, err := draw(slices.Clone(all), seed, claim, 0, func(t T) (string, string, float64) {
		id, stratum, _ := about(t)
		return id, stratum, 0
	})
	if err != nil {
		return nil, nil, err
	}
	vectors := func(list []T) map[string]compare.Tensor {
		out := map[string]compare.Tensor{}
		for _, t := range list {
			id, _, v := about(t)
			out[id] = v
		}
		return out
	}
	distance, err := leads(vectors(chosen), vectors(all))
	if err != nil {
		return nil, nil, err
	}
	return draw(all, seed, claim, border, func(t T) (string, string, float64) {
		id, stratum, _ := about(t)
		return id, stratum, distance[id]
	})
}

// embeddings collects what is judged of an output that is an embedding.
type embeddings struct {
	summary          attest.EmbeddingSummary
	index            *index
	reference        map[string]compare.Neighbourhood // of the golden vectors, by case
	distances        compare.Histogram
	most             float64 // the largest distance
	minNorm, maxNorm float64
	near, kept       int                   // of the reference's nearest
	last             compare.Neighbourhood // of the answer that is being judged
}

// newEmbeddings prepares the judgement of an output, or says why its golden
// vectors have no neighbours.
func newEmbeddings(s *Suite, output string) (*embeddings, error) {
	claim := map[string]compare.Tensor{}
	for _, c := range s.Cases {
		if c.Stratum == attest.StratumClaim {
			claim[c.ID] = s.Tensors[c.OutputTensor(output)]
		}
	}
	x, err := newIndex(claim)
	if err != nil {
		return nil, fmt.Errorf("output %s: %w", output, err)
	}
	e := &embeddings{index: x, reference: map[string]compare.Neighbourhood{}, minNorm: math.Inf(1)}
	e.summary = attest.EmbeddingSummary{Output: output, Index: len(x.ids), Histogram: []attest.Bin{}}
	for _, c := range s.Cases {
		v, err := vector(s.Tensors[c.OutputTensor(output)])
		if err == nil {
			e.reference[c.ID], err = x.around(c.ID, v)
		}
		if err != nil {
			return nil, fmt.Errorf("output %s, case %s: %w", output, c.ID, err)
		}
		e.summary.Dimension = len(v)
	}
	return e, nil
}

// checkEmbeddings checks that golden vectors can be judged.
func (s *Suite) checkEmbeddings() error {
	if s.ofEmbeddings() {
		if nearestOf(s.Criteria) == "" || len(s.Criteria.Outputs) != 1 {
			return fmt.Errorf("suite: criteria of a suite of embeddings have one output, and decide by %s", attest.DecideNearest)
		}
		if err := s.eachText(func(t attest.Text) error {
			if err := t.ValidateRequest(); err != nil {
				return fmt.Errorf("suite: %w", err)
			}
			if len(t.Choices) > 0 {
				return fmt.Errorf("suite: case %s is of an embedding, and has a text", t.ID)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if s.Closed() > 0 {
		return nil // who is near to whom is not known
	}
	for _, c := range s.Criteria.Outputs {
		if c.Decision.Kind != attest.DecideNearest {
			continue
		}
		if _, err := newEmbeddings(s, c.Output); err != nil {
			return fmt.Errorf("suite: %w", err)
		}
	}
	return nil
}

// embedding judges the vector of one case: how far it is, and what is nearest to
// it.
func (j *judge) embedding(c attest.Case, n *numerics, want, got compare.Tensor) error {
	e := n.embeddings
	w, err1 := vector(want)
	g, err2 := vector(got)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	d, err := compare.Embeddings(w, g)
	if err != nil {
		return target.Wrongf("no-direction", "output %s: %v", want.Name, err)
	}
	distance := 1 - d.Cosine
	if distance > n.tolerance.Absolute {
		// The vector of another case is no answer to this one.
		at, far, err := e.index.Closest(g)
		if err != nil {
			return err
		}
		if id := e.index.ids[at]; id != c.ID && far <= n.tolerance.Absolute {
			return target.Wrongf("reordered", "output %s is the embedding of case %s", want.Name, id)
		}
		e.summary.Exceeding++
		n.summary.Exceeding++
	}
	around, err := e.index.around(c.ID, g)
	if err != nil {
		return err
	}
	e.summary.Vectors++
	if bytes.Equal(want.Bits, got.Bits) {
		e.summary.Same++
	}
	e.distances[compare.Bucket(distance)]++
	e.most, e.minNorm, e.maxNorm = math.Max(e.most, distance), math.Min(e.minNorm, d.Norm), math.Max(e.maxNorm, d.Norm)
	reference := e.reference[c.ID]
	e.near += len(reference.Top)
	e.kept += len(reference.Top) - compare.Rankings(reference.Top, around.Top).Missing
	e.last = around
	return nil
}

// nearest takes up the decision in the case that embedding has looked at.
func (j *judge) nearest(c attest.Case, n numerics) {
	e := n.embeddings
	want, got := e.reference[c.ID], e.last
	flip := got.Nearest != want.Nearest
	j.near(want.Lead, flip)
	// What moves by a cosine distance of x moves, at length one, by the root of 2x:
	// nearer to another neighbour than that, times how far the two are apart, the
	// noise alone decides.
	tie := want.Lead <= float64(math.Sqrt(2*n.tolerance.Absolute)*want.Apart)
	j.decided(c, flip, tie, "the reference's neighbour", "another neighbour",
		fmt.Sprintf("case %s is the nearest, and not case %s", e.index.ids[got.Nearest], e.index.ids[want.Nearest]))
}

// describe fills the report.
func (e *embeddings) describe(n *numerics, reference float64) attest.EmbeddingSummary {
	s := e.summary
	s.MaxDistance, s.Tolerance, s.Noise, s.CandidateNoise = format(e.most), format(n.tolerance.Absolute), format(reference), format(n.noise)
	if s.Vectors == 0 {
		e.minNorm = 0
	}
	s.MinNorm, s.MaxNorm = format(e.minNorm), format(e.maxNorm)
	s.Overlap = "0"
	if e.near > 0 {
		s.Overlap = format(float64(e.kept) / float64(e.near))
	}
	for b, count := range e.distances {
		if count > 0 {
			s.Histogram = append(s.Histogram, attest.Bin{From: format(compare.From(b)), Count: int(count)})
		}
	}
	return s
}

// spread is how far two answers to the same question are apart: the noise of an
// output.
func (n *numerics) spread(want, got compare.Tensor) (float64, error) {
	if n.embeddings == nil {
		d := compare.Within(want, got, compare.Tolerance{})
		if d.Fault != "" {
			return 0, errors.New(d.Broken)
		}
		return d.MaxAbs, nil
	}
	return cosineDistance(want, got)
}

// cosineDistance compares two tensors that are one embedding each.
func cosineDistance(want, got compare.Tensor) (float64, error) {
	if d := compare.Within(want, got, compare.Tolerance{}); d.Fault != "" {
		return 0, errors.New(d.Broken)
	}
	w, err1 := vector(want)
	g, err2 := vector(got)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	e, err := compare.Embeddings(w, g)
	return 1 - e.Cosine, err
}

// probesInBatches adds to a list of probes those that ask for several embeddings
// at a time, where the protocol can.
func (s *Suite) probesInBatches(list []probe, chosen []attest.Case, plan attest.Plan, p target.Protocol) ([]probe, error) {
	for group := range slices.Chunk(chosen, batchSize) {
		var questions []target.Question
		for _, c := range group {
			q, _, _ := s.question(c, plan.Target)
			questions = append(questions, q)
		}
		q, ok := openai.Join(questions)
		if len(group) < 2 || !ok {
			continue
		}
		request, err := p.Encode(q)
		if err != nil {
			return nil, fmt.Errorf("probe %s of case %s: %w", attest.ProbeBatch, group[0].ID, err)
		}
		list = append(list, probe{attest.ProbeBatch, group, q, request})
	}
	return list, nil
}

// recordEmbeddings is [Record] for cases that ask for embeddings with requests.
func recordEmbeddings(ctx context.Context, tg target.Target, d target.Description, opt RecordOptions) (*Suite, error) {
	output := nearestOf(opt.Criteria)
	rec := &recorder{ctx: ctx, tg: tg, opt: opt, outputs: []string{output}}
	s := &Suite{Criteria: opt.Criteria, Texts: map[string]attest.Text{}, Tensors: map[string]compare.Tensor{}}
	s.Document = attest.Suite{
		Name: opt.Name, Kind: attest.KindEmbeddings, Model: opt.Model, Protocol: opt.Target.Protocol, DataClassification: opt.DataClassification,
		Inputs: []attest.TensorSpec{}, Claim: opt.Claim, Border: opt.Border, CreatedAt: opt.Clock().UTC(),
		Reference: attest.Reference{
			ServedModel: d.Model, ServedVersion: opt.Target.Version, Platform: d.Platform, RecordedAt: opt.Clock().UTC(),
			Noise: map[string]float64{output: 0}, Perturbations: []string{"asked again", fmt.Sprintf("in batches of %d", batchSize)}, Measured: opt.Claim + opt.Border,
		},
	}
	type asked struct {
		Candidate
		text     attest.Text
		question target.Question
		golden   compare.Tensor
		request  []byte
	}
	ask := func(rec *recorder, q target.Question, rows int) (request []byte, list []compare.Tensor, a *target.Answer, err error) {
		request, a, err = rec.send(q)
		if err != nil {
			return nil, nil, nil, err
		}
		if len(a.Outputs) != 1 {
			return nil, nil, nil, fmt.Errorf("its answer has no embedding: protocol %s does not answer with them", opt.Target.Protocol)
		}
		parts, err := split(a.Outputs, rows)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, p := range parts {
			list = append(list, p[0])
		}
		return request, list, a, nil
	}
	var all []asked
	seed := sha256.New()
	for _, c := range opt.Candidates {
		a := asked{Candidate: c, question: target.Question{ID: c.ID, Model: opt.Target.Model, Version: opt.Target.Version, Outputs: rec.outputs, Request: c.Request}}
		a.text = attest.Text{ID: c.ID, Request: string(bytes.TrimSpace(c.Request)), Choices: []attest.TextChoice{}}
		request, list, answer, err := ask(rec, a.question, 1)
		if err != nil {
			return nil, fmt.Errorf("the reference, case %s: %w", c.ID, err)
		}
		a.request, a.golden = request, list[0]
		if u := answer.Usage; u != nil {
			a.text.Usage = &attest.TextUsage{Prompt: u.Prompt, Completion: u.Completion}
		}
		seed.Write(request)
		all = append(all, a)
	}
	chosen, border, err := drawNearest(all, [32]byte(seed.Sum(nil)), opt.Claim, opt.Border, func(a asked) (string, string, compare.Tensor) { return a.ID, a.Stratum, a.golden })
	if err != nil {
		return nil, err
	}
	s.Document.Outputs = []attest.TensorSpec{{Name: output, Datatype: chosen[0].golden.Datatype, Shape: []int64{-1, chosen[0].golden.Shape[1]}}}
	note := func(id string, want, got compare.Tensor) error {
		x, err := cosineDistance(want, got)
		if err != nil {
			return fmt.Errorf("noise floor of the reference, case %s: %w", id, err)
		}
		s.Document.Reference.Noise[output] = math.Max(s.Document.Reference.Noise[output], x)
		return nil
	}
	for _, a := range chosen {
		c := attest.Case{ID: a.ID, Stratum: attest.StratumClaim, Label: a.Label, Slice: maps.Clone(a.Slice), Request: string(digest.FromBytes(a.request))}
		if border[a.ID] {
			c.Stratum = attest.StratumBorder
		}
		s.Cases = append(s.Cases, c)
		s.Texts[a.ID], s.Tensors[c.OutputTensor(output)] = a.text, a.golden
		_, again, _, err := ask(rec, a.question, 1)
		if err == nil {
			err = note(a.ID, a.golden, again[0])
		}
		if err != nil {
			return nil, err
		}
	}
	for group := range slices.Chunk(chosen, batchSize) {
		var questions []target.Question
		for _, a := range group {
			questions = append(questions, a.question)
		}
		q, ok := openai.Join(questions)
		if !ok {
			return nil, errors.New("noise floor of the reference: the questions cannot be asked together: each has one text as input, and all have the same parameters")
		}
		_, list, _, err := ask(rec, q, len(group))
		for i := 0; err == nil && i < len(group); i++ {
			err = note(group[i].ID, group[i].golden, list[i])
		}
		if err != nil {
			return nil, fmt.Errorf("noise floor of the reference, in a batch: %w", err)
		}
		if opt.Progress != nil {
			opt.Progress(len(group) - 1)
		}
	}
	if err := rec.vary(s, len(chosen), func(there *recorder, i int) (map[string]float64, error) {
		_, list, _, err := ask(there, chosen[i].question, 1)
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", chosen[i].ID, err)
		}
		return s.off([]compare.Tensor{chosen[i].golden}, list)
	}); err != nil {
		return nil, err
	}
	return s, s.validate()
}
