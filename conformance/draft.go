package conformance

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/verify/attest"
)

// A Draft is a suite in the making: a folder with what the suite shall claim
// and with cases to draw from. It becomes a suite when a reference is asked
// ([Record]), or when its cases bring their golden outputs with them
// ([Draft.Suite]).
type Draft struct {
	Version            int             `json:"version"`
	Name               string          `json:"name"`
	DataClassification string          `json:"dataClassification"`
	Border             int             `json:"border"`
	Criteria           attest.Criteria `json:"criteria"`

	// ClusterBy is the key of the slice whose value is the cluster of a case that
	// names none; "" if there is none.
	ClusterBy string `json:"clusterBy,omitempty"`

	// Added says where the cases come from, and what was left behind there.
	Added []Added `json:"added"`
}

// An Added is one time that cases were put into a draft.
type Added struct {
	From  string   `json:"from"`
	Cases int      `json:"cases"`
	Notes []string `json:"notes,omitempty"` // what was dropped or changed, in words
}

// Names of the files of a draft. The cases are a file that [ReadCandidates]
// reads.
const (
	fileDraft      = "draft.json"
	fileDraftCases = "cases.jsonl"
)

// Validate says what is missing or contradictory, or nil.
func (d Draft) Validate() error {
	p := d.Criteria.Plan
	switch {
	case d.Version != 1:
		return fmt.Errorf("draft: version %d is unknown", d.Version)
	case d.Name == "":
		return errors.New("draft: name is missing")
	case d.DataClassification == "":
		return errors.New(`draft: dataClassification is missing; say what the inputs are, for example "synthetic" or "public"`)
	case d.Border < 0:
		return errors.New("draft: border is negative")
	}
	if err := d.Criteria.Validate(); err != nil {
		return fmt.Errorf("draft: %w", err)
	}
	if t := d.Criteria.Text; (t == nil || t.Sampled == nil) && !stats.Keeps(p.N, p.Allowed, p.Margin, p.Alpha) {
		return fmt.Errorf("draft: %d of %d allowed does not exclude a rate of %v with alpha %v", p.Allowed, p.N, p.Margin, p.Alpha)
	}
	return nil
}

// CreateDraft makes the folder of a draft. There must be none in it.
func CreateDraft(dir string, d Draft) error {
	if d.Added == nil {
		d.Added = []Added{}
	}
	if err := d.Validate(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, fileDraft)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is a draft already", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, fileDraftCases), nil); err != nil {
		return err
	}
	return writeDraft(dir, d)
}

// OpenDraft reads the folder of a draft. A draft may have no cases yet.
func OpenDraft(dir string) (Draft, []Candidate, error) {
	var d Draft
	raw, err := os.ReadFile(filepath.Join(dir, fileDraft))
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, fmt.Errorf("%s is no draft: it has no %s", dir, fileDraft)
	}
	if err != nil {
		return d, nil, err
	}
	if err := attest.Unmarshal(raw, &d); err != nil {
		return d, nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileDraft), err)
	}
	if err := d.Validate(); err != nil {
		return d, nil, fmt.Errorf("%s: %w", dir, err)
	}
	raw, err = os.ReadFile(filepath.Join(dir, fileDraftCases))
	if err != nil {
		return d, nil, err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return d, nil, nil
	}
	cases, err := ReadCandidates(bytes.NewReader(raw))
	if err != nil {
		return d, nil, fmt.Errorf("%s: %w", dir, err)
	}
	return d, cases, nil
}

// AddCases puts cases into a draft: all of them or, with an error, none. They
// must ask what those that are there ask: the same inputs, of the same types.
func AddCases(dir string, cases []Candidate, added Added) (Draft, []Candidate, error) {
	d, all, err := OpenDraft(dir)
	if err != nil {
		return d, nil, err
	}
	if err := ClusterBy(cases, d.ClusterBy); err != nil {
		return d, nil, err
	}
	all = append(all, cases...)
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.ID] {
			return d, nil, fmt.Errorf("case %s is there already", c.ID)
		}
		seen[c.ID] = true
		if err := c.like(all[0]); err != nil {
			return d, nil, err
		}
	}
	var b bytes.Buffer
	for _, c := range all {
		raw, err := json.Marshal(c)
		if err != nil {
			return d, nil, fmt.Errorf("case %s: %w", c.ID, err)
		}
		if len(raw) >= attest.MaxDocument {
			return d, nil, fmt.Errorf("case %s has %d bytes, and a case may have %d", c.ID, len(raw), attest.MaxDocument)
		}
		b.Write(append(raw, '\n'))
	}
	// What is read back must be what is written.
	if len(all) > 0 {
		if _, err := ReadCandidates(bytes.NewReader(b.Bytes())); err != nil {
			return d, nil, err
		}
	}
	added.Cases = len(cases)
	d.Added = append(d.Added, added)
	if err := writeFile(filepath.Join(dir, fileDraftCases), b.Bytes()); err != nil {
		return d, nil, err
	}
	return d, all, writeDraft(dir, d)
}

// like checks that a case has the inputs that another one has, and no numbers
// that do not fit its shapes.
func (c Candidate) like(other Candidate) error {
	if (c.Request == nil) != (other.Request == nil) {
		return fmt.Errorf("case %s asks with a request or with tensors, and case %s the other way", c.ID, other.ID)
	}
	for name, t := range c.Inputs {
		o, ok := other.Inputs[name]
		switch {
		case !ok || len(c.Inputs) != len(other.Inputs):
			return fmt.Errorf("case %s has other inputs than case %s", c.ID, other.ID)
		case o.Datatype != t.Datatype:
			return fmt.Errorf("case %s: input %s is %s, and that of case %s is %s", c.ID, name, t.Datatype, other.ID, o.Datatype)
		}
	}
	for _, part := range []map[string]CandidateTensor{c.Inputs, c.Outputs} {
		for name, t := range part {
			if n := compare.Elements(t.Shape); n < 0 || n != len(t.Data) {
				return fmt.Errorf("case %s: %s has %d numbers for shape %v", c.ID, name, len(t.Data), t.Shape)
			}
		}
	}
	return nil
}

func writeDraft(dir string, d Draft) error {
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, fileDraft), append(raw, '\n'))
}

// writeFile replaces a file as a whole.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // of no effect once it has its name
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// PlanWords says in words what criteria claim, and what their plan can miss.
// Clustered says that cases come in clusters, which the plan then counts.
func PlanWords(c attest.Criteria, clustered bool) []string {
	p := c.Plan
	if c.Text != nil && c.Text.Sampled != nil {
		return sampledPlan(c, nil, 0)
	}
	percent := func(x float64) string { return fmt.Sprintf("%.4g %%", 100*x) }
	what, each := "claim cases flip", "claim cases flips"
	if clustered {
		what, each = "clusters of claim cases have a decision that flips", "clusters of claim cases has a decision that flips"
	}
	flips := fmt.Sprintf("at most %d of %d %s", p.Allowed, p.N, what)
	if p.Allowed == 0 {
		flips = fmt.Sprintf("none of %d %s", p.N, each)
	}
	list := []string{
		fmt.Sprintf("an environment is certified when %s", flips),
		fmt.Sprintf("that excludes a flip rate of %s or more with %s confidence (alpha %s)", percent(p.Margin), percent(1-p.Alpha), stats.Format(p.Alpha)),
		fmt.Sprintf("a flip rate of %s or more is refused with probability %s (beta %s)", percent(stats.Detectable(p.N, p.Allowed, p.Beta)), percent(1-p.Beta), stats.Format(p.Beta)),
	}
	for _, l := range c.Limits {
		if l.Measure != attest.MeasureAccuracy {
			continue
		}
		if need, err := stats.SmallestN(0, l.Margin, p.Alpha/2); err == nil {
			list = append(list, fmt.Sprintf("and when accuracy is shown to fall by less than %s, which takes at least %d independent claim cases with a label", percent(l.Margin), need))
		}
	}
	return list
}

// SuiteWords is [PlanWords] of a suite, with what its reference showed.
func SuiteWords(s *Suite) []string {
	if s.sampled() {
		return sampledPlan(s.Criteria, s.Document.Reference.Sampled, len(s.Document.Accepted))
	}
	_, clustered := s.units()
	return PlanWords(s.Criteria, clustered)
}

// draw takes claim cases at random from those that are not marked as border
// cases, in an order that follows from the seed alone; and then border cases:
// those marked so, and of the rest the ones nearest to the decision that are
// not marked as claim cases. It returns them by id, and which are border ones.
func draw[T any](all []T, seed [32]byte, claim, border int, about func(T) (id, stratum string, distance float64)) (chosen []T, atBorder map[string]bool, err error) {
	rng := rand.New(rand.NewChaCha8(seed))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	stratum := func(t T) string { _, s, _ := about(t); return s }
	slices.SortStableFunc(all, func(a, b T) int {
		// false before true: marked border cases come last
		return cmp.Compare(boolInt(stratum(a) == attest.StratumBorder), boolInt(stratum(b) == attest.StratumBorder))
	})
	if claim > len(all) || claim > 0 && stratum(all[claim-1]) == attest.StratumBorder {
		n := len(all)
		for n > 0 && stratum(all[n-1]) == attest.StratumBorder {
			n--
		}
		return nil, nil, fmt.Errorf("%d claim cases are needed and %d cases may be one", claim, n)
	}
	rest := slices.DeleteFunc(slices.Clone(all[claim:]), func(t T) bool { return stratum(t) == attest.StratumClaim })
	if border > len(rest) {
		return nil, nil, fmt.Errorf("%d border cases are needed and %d cases are left that may be one", border, len(rest))
	}
	slices.SortStableFunc(rest, func(a, b T) int {
		idA, stratumA, distanceA := about(a)
		idB, stratumB, distanceB := about(b)
		return cmp.Or(cmp.Compare(boolInt(stratumA != attest.StratumBorder), boolInt(stratumB != attest.StratumBorder)), cmp.Compare(distanceA, distanceB), strings.Compare(idA, idB))
	})
	atBorder = map[string]bool{}
	for _, t := range rest[:border] {
		id, _, _ := about(t)
		atBorder[id] = true
	}
	chosen = append(slices.Clone(all[:claim]), rest[:border]...)
	slices.SortFunc(chosen, func(a, b T) int {
		idA, _, _ := about(a)
		idB, _, _ := about(b)
		return strings.Compare(idA, idB)
	})
	return chosen, atBorder, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// SuiteOptions say what else a draft needs to be a suite without a reference
// being asked.
type SuiteOptions struct {
	Model  attest.Resource
	Target attest.Target // its protocol, and what requests name
	Clock  func() time.Time
}

// Suite makes a suite of a draft whose cases all bring their golden outputs.
// Nobody measured a noise floor: the one that is noted is what the outputs'
// types can hold, and the suite says so.
func (d Draft) Suite(cases []Candidate, opt SuiteOptions) (*Suite, error) {
	if len(cases) == 0 {
		return nil, errors.New("the draft has no cases")
	}
	if err := noClusters(cases, d.Criteria); err != nil {
		return nil, err
	}
	p, err := protocolOf(opt.Target)
	if err != nil {
		return nil, err
	}
	at := opt.Clock().UTC()
	s := &Suite{Criteria: d.Criteria, Tensors: map[string]compare.Tensor{}}
	s.Document = attest.Suite{
		Name: d.Name, Model: opt.Model, Protocol: opt.Target.Protocol, DataClassification: d.DataClassification,
		Claim: d.Criteria.Plan.N, Border: d.Border, CreatedAt: at,
		Reference: attest.Reference{
			ServedModel: opt.Target.Model, ServedVersion: opt.Target.Version, Platform: "not asked: the golden outputs came with the cases", RecordedAt: at,
			Noise: map[string]float64{}, Perturbations: []string{"none: the floor is what the outputs' types can hold"},
		},
	}
	type given struct {
		Candidate
		inputs, outputs []compare.Tensor
		distance        float64
		request         []byte
	}
	specs := func(tensors map[string]CandidateTensor) (list []attest.TensorSpec) {
		for _, name := range slices.Sorted(maps.Keys(tensors)) {
			t := tensors[name]
			list = append(list, attest.TensorSpec{Name: name, Datatype: t.Datatype, Shape: t.Shape})
		}
		return list
	}
	s.Document.Inputs, s.Document.Outputs = specs(cases[0].Inputs), specs(cases[0].Outputs)
	tensors := func(part map[string]CandidateTensor, specs []attest.TensorSpec) (list []compare.Tensor, err error) {
		for _, spec := range specs {
			t, ok := part[spec.Name]
			if !ok || len(part) != len(specs) || t.Datatype != spec.Datatype {
				return nil, fmt.Errorf("its tensors are not those of case %s (%s %s is needed)", cases[0].ID, spec.Datatype, spec.Name)
			}
			one, err := t.tensor(spec.Name)
			if err != nil {
				return nil, err
			}
			list = append(list, one)
		}
		return list, nil
	}
	var all []given
	nearest := nearestOf(d.Criteria)
	seed := sha256.New()
	for _, c := range cases {
		g := given{Candidate: c}
		if c.Request != nil || len(c.Outputs) == 0 {
			return nil, fmt.Errorf("case %s has no golden outputs: ask a reference (assay suite record --draft)", c.ID)
		}
		g.inputs, err = tensors(c.Inputs, s.Document.Inputs)
		if err == nil {
			g.outputs, err = tensors(c.Outputs, s.Document.Outputs)
		}
		if err == nil {
			q, _, _ := s.question(attest.Case{ID: c.ID}, opt.Target)
			q.Inputs = g.inputs
			g.request, err = p.Encode(q)
		}
		if err == nil && nearest == "" {
			var decision choice
			decision, err = decide(d.Criteria.Outputs[0], g.outputs)
			g.distance = decision.distance
		}
		if err != nil {
			return nil, fmt.Errorf("case %s: %w", c.ID, err)
		}
		seed.Write(g.request)
		all = append(all, g)
	}
	var chosen []given
	var border map[string]bool
	if nearest == "" {
		chosen, border, err = drawUnits(all, [32]byte(seed.Sum(nil)), s.Document.Claim, s.Document.Border, func(g given) string { return g.Cluster }, func(g given) (string, string, float64) { return g.ID, g.Stratum, g.distance })
	} else {
		chosen, border, err = drawNearest(all, [32]byte(seed.Sum(nil)), s.Document.Claim, s.Document.Border, func(g given) (string, string, compare.Tensor) { return g.ID, g.Stratum, named(g.outputs, nearest) })
	}
	if err != nil {
		return nil, err
	}
	s.Document.Claim = len(chosen) - len(border)
	for _, g := range chosen {
		c := attest.Case{ID: g.ID, Stratum: attest.StratumClaim, Label: g.Label, Cluster: g.Cluster, Slice: g.Slice, Request: string(digest.FromBytes(g.request))}
		if border[g.ID] {
			c.Stratum = attest.StratumBorder
		}
		for _, t := range g.inputs {
			s.Tensors[c.InputTensor(t.Name)] = t
		}
		for _, t := range g.outputs {
			s.Tensors[c.OutputTensor(t.Name)] = t
			values, err := t.Values()
			if err != nil {
				return nil, fmt.Errorf("case %s: %w", c.ID, err)
			}
			largest := 0.0
			for _, v := range values {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					return nil, fmt.Errorf("case %s: golden output %s has a number that is not finite", c.ID, t.Name)
				}
				largest = math.Max(largest, math.Abs(v))
			}
			// The distance of two neighbours in the type, at the largest value.
			step := math.Nextafter(largest, math.Inf(1)) - largest
			if t.Datatype == "FP32" {
				step = float64(math.Nextafter32(float32(largest), float32(math.Inf(1)))) - largest
			}
			if s.embedded(t.Name) && largest > 0 {
				// Of an embedding it is a cosine distance: half the square of how far
				// the vector moves, at length one, if every number rounds.
				share := step / largest
				step = float64(float64(share*share)*float64(len(values))) / 2
			}
			s.Document.Reference.Noise[t.Name] = math.Max(s.Document.Reference.Noise[t.Name], step)
		}
		s.Cases = append(s.Cases, c)
	}
	return s, s.validate()
}

// Ready says how many of a draft's cases can be asked, and how many bring
// their golden outputs; replayable is "" or why one cannot be asked.
func Ready(cases []Candidate) (golden int, replayable string) {
	for _, c := range cases {
		if len(c.Outputs) > 0 {
			golden++
		}
		for _, name := range slices.Sorted(maps.Keys(c.Inputs)) {
			if _, err := c.Inputs[name].tensor(name); err != nil && replayable == "" {
				replayable = fmt.Sprintf("case %s: %v", c.ID, err)
			}
		}
	}
	return golden, replayable
}
