package attest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A TensorSpec describes a named tensor: element type in the words of the
// Open Inference Protocol ("FP32"), and shape, with -1 for the batch.
type TensorSpec struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

// A Suite is golden inputs together with what the reference environment
// answered to them: the document suite.json of a suite artifact. The cases
// are in cases.jsonl, and all tensors, as bits, in tensors.safetensors; of a
// suite of texts, requests and answers are in texts.jsonl, and of one of
// embeddings requests are there and golden vectors among the tensors.
type Suite struct {
	Name               string       `json:"name"`
	Kind               string       `json:"kind,omitempty"` // "", of tensors; [KindTexts], without inputs and outputs; [KindEmbeddings], with one output
	Model              Resource     `json:"model"`          // that the reference served
	Protocol           string       `json:"protocol"`
	Inputs             []TensorSpec `json:"inputs"`
	Outputs            []TensorSpec `json:"outputs"`
	Claim              int          `json:"claim"`  // cases sampled at random: they carry the rate
	Border             int          `json:"border"` // cases near the decision: they detect, and enter no rate
	DataClassification string       `json:"dataClassification"`
	Reference          Reference    `json:"reference"`
	CreatedAt          time.Time    `json:"createdAt"`

	// Accepted are further references of sampled texts, recorded with the same
	// prompts: to be like one of them, or like Reference, is enough.
	Accepted []AcceptedReference `json:"accepted,omitempty"`
}

// A Reference says how the golden outputs were recorded.
type Reference struct {
	ServedModel   string    `json:"servedModel"`
	ServedVersion string    `json:"servedVersion"`
	Platform      string    `json:"platform"`
	RecordedAt    time.Time `json:"recordedAt"`

	// Noise is, for each output, the largest absolute difference that benign
	// perturbations made: asking again, in a batch with others, and with each
	// input moved by one unit in the last place. Of texts it is for each of
	// [NoiseOfTexts] what asking again made. Of an output whose decision is
	// [DecideNearest] it is a cosine distance. Of sampled texts there is none, and
	// Sampled instead.
	Noise map[string]float64 `json:"noise"`

	// Sampled is how far the earlier half of the samples is from the later one.
	Sampled *SampledFloor `json:"sampled,omitempty"`

	// Perturbations names them, and Measured says how often each was made.
	Perturbations []string `json:"perturbations"`
	Measured      int      `json:"measured"`

	// Threads says what another number of threads did; nil if they were not varied.
	Threads *ReferenceThreads `json:"threads,omitempty"`
}

// Strata of cases.
const (
	StratumClaim  = "claim"
	StratumBorder = "border"
)

// A Case is one golden input: a line of cases.jsonl.
type Case struct {
	ID      string `json:"id"`
	Stratum string `json:"stratum"`
	Label   string `json:"label,omitempty"` // what is right, if it is known; compared only by [MeasureAccuracy]

	// Cluster is shared by cases that are not independent of each other: questions
	// of one document, samples of one prompt. Whatever is inferred counts clusters,
	// and a cluster flips if any of its cases does. Cases without one are their own.
	Cluster string `json:"cluster,omitempty"`

	// Slice tags the case for reports by group.
	Slice map[string]string `json:"slice,omitempty"`

	// Request is the digest of the bytes that are sent for this case; "" if
	// the case is sealed.
	Request string `json:"request"`

	// Sealed is the digest of the canonical bytes of a sealed case. All else
	// that is known of it is its id and its stratum.
	Sealed string `json:"sealed,omitempty"`
}

// InputTensor and OutputTensor are the names of a case's tensors in
// tensors.safetensors.
func (c Case) InputTensor(name string) string  { return c.ID + "/in/" + name }
func (c Case) OutputTensor(name string) string { return c.ID + "/out/" + name }

// Validate says what is missing or contradictory, or nil.
func (s Suite) Validate() error {
	switch {
	case s.Name == "":
		return errors.New("suite: name is missing")
	case s.Protocol == "":
		return errors.New("suite: protocol is missing")
	case s.Kind != "" && s.Kind != KindTexts && s.Kind != KindEmbeddings:
		return fmt.Errorf("suite: kind %q is unknown", s.Kind)
	case s.Kind == "" && (len(s.Inputs) == 0 || len(s.Outputs) == 0):
		return errors.New("suite: inputs and outputs are both needed")
	case s.Kind == KindTexts && len(s.Inputs)+len(s.Outputs) > 0:
		return errors.New("suite: a suite of texts has no tensors")
	case s.Kind == KindEmbeddings && (len(s.Inputs) > 0 || len(s.Outputs) != 1):
		return errors.New("suite: a suite of embeddings has no inputs but requests, and one output")
	case s.Claim <= 0:
		return errors.New("suite: it has no claim cases, so nothing could be claimed from it")
	case s.Border < 0:
		return errors.New("suite: border is negative")
	case s.DataClassification == "":
		return errors.New(`suite: dataClassification is missing; say what the inputs are, for example "synthetic" or "public"`)
	case s.CreatedAt.IsZero() || s.Reference.RecordedAt.IsZero():
		return errors.New("suite: createdAt and reference.recordedAt are both needed")
	}
	if _, err := s.Model.Digest.OCI(); err != nil {
		return fmt.Errorf("suite: model: %w", err)
	}
	for _, o := range s.Outputs {
		if n, ok := s.Reference.Noise[o.Name]; !ok || n < 0 {
			return fmt.Errorf("suite: the noise floor of output %q was not measured", o.Name)
		}
	}
	if s.Kind == KindTexts {
		if err := s.Reference.floorOfTexts(); err != nil {
			return fmt.Errorf("suite: %w", err)
		}
	}
	seen := map[string]bool{ReferenceName: true}
	for _, a := range s.Accepted {
		switch {
		case a.Name == "" || seen[a.Name]:
			return fmt.Errorf("suite: an accepted reference needs a name of its own, and %q is none", a.Name)
		case s.Kind != KindTexts || a.Sampled == nil:
			return fmt.Errorf("suite: accepted reference %s: it is for sampled texts", a.Name)
		case a.RecordedAt.IsZero():
			return fmt.Errorf("suite: accepted reference %s: recordedAt is missing", a.Name)
		}
		seen[a.Name] = true
		if err := a.floorOfTexts(); err != nil {
			return fmt.Errorf("suite: accepted reference %s: %w", a.Name, err)
		}
	}
	if t := s.Reference.Threads; t != nil {
		if err := t.Validate(s.Reference.Noise); err != nil {
			return fmt.Errorf("suite: %w", err)
		}
	}
	return nil
}

// floorOfTexts says what was not measured of a reference of texts, or nil: the
// floor of sampled ones, or each of [NoiseOfTexts].
func (r Reference) floorOfTexts() error {
	if f := r.Sampled; f != nil {
		if !(f.Unseen >= 0) || !(f.Upper >= f.Distance) {
			return errors.New("the distance between the halves of its samples was not measured")
		}
		return nil
	}
	for _, name := range NoiseOfTexts {
		if n, ok := r.Noise[name]; !ok || !(n >= 0) {
			return fmt.Errorf("the noise floor of %s was not measured", name)
		}
	}
	return nil
}

// ReferenceName is what the first reference is called beside accepted ones.
const ReferenceName = "reference"

// An AcceptedReference is a further one that an environment of sampled texts may
// be like: of another precision, for example, that is allowed too.
type AcceptedReference struct {
	Name string `json:"name"`
	Reference
}

// Criteria judge a replay: criteria.json of a suite. What they say is fixed
// before the first request is sent.
//
// Version 1 has outputs with tolerances and decisions, and the plan. Version 2
// adds the candidate's noise floor and limits, and its report says more; criteria
// of texts are of version 2. Version 3 adds embeddings and further measures and
// decisions, and its report says more again. Version 4 adds sampled texts, clusters
// of cases and accuracy. A suite of an earlier version means, and reports, what it
// always did.
type Criteria struct {
	Version int `json:"version"`

	// Outputs says what must be the same, for every output of the suite. A suite
	// of texts has none, and Text instead.
	Outputs []OutputCriteria `json:"outputs"`
	Text    *TextCriteria    `json:"text,omitempty"`

	// Plan is the statistical claim about decisions.
	Plan BinomialPlan `json:"plan"`

	// Noise says how the candidate's own noise floor counts (from version 2 on).
	Noise *NoiseCriteria `json:"noise,omitempty"`

	// Limits are what has to be shown beside the plan (from version 2 on).
	Limits []Limit `json:"limits,omitempty"`
}

// NoiseCriteria say how noisy the candidate may be: a floor of at most Ratio
// times the reference's, or of the output's absolute tolerance where that is
// more. Up to there its floor widens the tolerance as the reference's does;
// beyond, the noise itself is a difference.
type NoiseCriteria struct {
	Ratio float64 `json:"ratio"`
}

// A Limit is a margin on one measure, at the plan's alpha and beta.
type Limit struct {
	Measure string  `json:"measure"`
	Output  string  `json:"output,omitempty"` // not for latency, nor of texts
	Margin  float64 `json:"margin"`
}

// Measures that a limit can be on. Those of an output are one number a case;
// their mean over the claim cases has to be shown to be within the margin.
const (
	MeasureBias      = "bias"            // got - want, on both sides
	MeasureAbsolute  = "absolute-error"  // mean |got - want|
	MeasureVariation = "total-variation" // between two distributions over classes
	MeasureCosine    = "cosine-distance" // 1 - cosine, of embeddings
	MeasureSlow      = "slow-answers"    // 99 % of answers come within Margin milliseconds

	// The rest is of version 3.

	MeasureNorm      = "norm-difference" // |norm of got / norm of want - 1|, of embeddings
	MeasureHellinger = "hellinger"       // between two distributions over classes, as the next two
	MeasureJS        = "jensen-shannon"  // in nats
	MeasureKL        = "kl-divergence"   // of got from want, in nats; infinite if got excludes what want has, and then not shown

	// MeasureAccuracy is how much the share of right decisions falls from the
	// reference to the environment, over the claim cases that have a label (version
	// 4). Whoever does not answer is wrong. It names no output: right is what the
	// first one that decides, or the text, says as the label does.
	MeasureAccuracy = "accuracy-loss"
)

// Measures lists them.
var Measures = []string{MeasureBias, MeasureAbsolute, MeasureVariation, MeasureHellinger, MeasureJS, MeasureKL, MeasureCosine, MeasureNorm, MeasureSlow, MeasureAccuracy}

// measuresOfVersion3 are those that no earlier criteria have.
var measuresOfVersion3 = []string{MeasureNorm, MeasureHellinger, MeasureJS, MeasureKL, MeasureFirstToken, MeasureToken}

// OutputCriteria say how one output is compared.
type OutputCriteria struct {
	Output string `json:"output"`

	// Tolerance bounds numeric differences: |got - want| <= absolute +
	// relative*|want|, where absolute is the larger one of Absolute and
	// NoiseFactor times the reference's noise floor. Of an embedding (its decision
	// is [DecideNearest]) that is the bound of the cosine distance of the whole
	// vector, and Relative is 0.
	Absolute    float64 `json:"absolute"`
	Relative    float64 `json:"relative"`
	NoiseFactor float64 `json:"noiseFactor"`

	// Decision turns the output into the thing that must not flip.
	Decision Decision `json:"decision"`
}

// A Decision is what a business does with an output.
type Decision struct {
	// Kind is "label" (the greatest element wins), "threshold" (element Index is
	// compared to Threshold), "top-k" (the K greatest, in whatever order) or
	// "nearest": the output is an embedding, and what must not flip is which of
	// the other claim cases' golden vectors is the nearest to it, as in a search
	// whose index the reference made.
	Kind string `json:"kind"`

	// Labels name the classes; for a threshold, Labels[0] is the decision
	// below it and Labels[1] the one at or above it. An embedding has none.
	Labels    []string `json:"labels"`
	Index     int      `json:"index"`
	Threshold float64  `json:"threshold"`
	K         int      `json:"k,omitempty"`
}

// Kinds of decisions. The last two are of version 3.
const (
	DecideLabel     = "label"
	DecideThreshold = "threshold"
	DecideTopK      = "top-k"
	DecideNearest   = "nearest"
)

// A BinomialPlan is an acceptance plan (n, c): certify when at most Allowed
// of N sampled cases flip. It excludes a flip rate of Margin or more with
// confidence 1 - Alpha.
type BinomialPlan struct {
	Margin  float64 `json:"margin"`
	Alpha   float64 `json:"alpha"`
	Beta    float64 `json:"beta"`
	N       int     `json:"n"`
	Allowed int     `json:"allowed"`
}

// Validate says what is missing or contradictory, or nil. That the plan's
// numbers keep what they promise is computed by whoever judges.
func (c Criteria) Validate() error {
	p := c.Plan
	switch {
	case c.Version < 1 || c.Version > 4:
		return fmt.Errorf("criteria: version %d is unknown", c.Version)
	case c.Version == 1 && (c.Noise != nil || len(c.Limits) > 0):
		return errors.New("criteria: noise and limits are of version 2")
	case c.Version >= 2 && (c.Noise == nil || !(c.Noise.Ratio >= 1)):
		return fmt.Errorf("criteria: version %d needs noise.ratio, of at least 1", c.Version)
	case len(c.Outputs) == 0 && c.Text == nil:
		return errors.New("criteria: no output is compared")
	case c.Text != nil && c.Text.Sampled != nil && (c.Version < 4 || p.Allowed != 0 || p.N < MinPrompts):
		return fmt.Errorf("criteria: sampled texts are of version 4, take at least %d prompts, and nothing of them flips that could be allowed", MinPrompts)
	case c.Text != nil && (len(c.Outputs) > 0 || c.Version == 1):
		return errors.New("criteria: text is of version 2, and has no outputs beside it")
	case !(p.Margin > 0 && p.Margin < 1) || !(p.Alpha > 0 && p.Alpha < 1) || !(p.Beta > 0 && p.Beta < 1):
		return errors.New("criteria: margin, alpha and beta must be between 0 and 1")
	case p.N <= 0 || p.Allowed < 0 || p.Allowed >= p.N:
		return errors.New("criteria: n must be positive, and allowed at least 0 and below n")
	}
	for _, o := range c.Outputs {
		switch {
		case o.Output == "":
			return errors.New("criteria: an output has no name")
		case !(o.Absolute >= 0) || !(o.Relative >= 0) || !(o.NoiseFactor >= 0):
			return fmt.Errorf("criteria: %s: tolerances must not be negative", o.Output)
		case o.Decision.Kind == DecideLabel && len(o.Decision.Labels) < 2:
			return fmt.Errorf("criteria: %s: a label decision needs its labels", o.Output)
		case o.Decision.Kind == DecideThreshold && (len(o.Decision.Labels) != 2 || o.Decision.Index < 0):
			return fmt.Errorf("criteria: %s: a threshold decision needs two labels and an index", o.Output)
		case o.Decision.Kind == DecideTopK && (o.Decision.K < 1 || o.Decision.K >= len(o.Decision.Labels)):
			return fmt.Errorf("criteria: %s: a top-k decision needs labels, and a k of at least 1 and below their number", o.Output)
		case o.Decision.Kind == DecideNearest && (len(o.Decision.Labels) > 0 || o.Relative != 0):
			return fmt.Errorf("criteria: %s: an embedding has no labels and no relative tolerance", o.Output)
		case o.Decision.Kind == DecideNearest && p.N < 3:
			return fmt.Errorf("criteria: %s: which is the nearest of others is no question with %d cases; at least 3 are needed", o.Output, p.N)
		case !slices.Contains([]string{DecideLabel, DecideThreshold, DecideTopK, DecideNearest}, o.Decision.Kind):
			return fmt.Errorf("criteria: %s: decision kind %q is unknown", o.Output, o.Decision.Kind)
		case c.Version < 3 && (o.Decision.Kind == DecideTopK || o.Decision.Kind == DecideNearest || o.Decision.K != 0):
			return fmt.Errorf("criteria: %s: decision kind %q is of version 3", o.Output, o.Decision.Kind)
		}
	}
	measures := Measures
	if c.Text != nil {
		if err := c.Text.validate(); err != nil {
			return err
		}
		if c.Text.BothWays && c.Version < 3 {
			return errors.New("criteria: text.bothWays is of version 3")
		}
		measures = MeasuresOfTexts
	}
	for _, l := range c.Limits {
		switch {
		case !slices.Contains(measures, l.Measure):
			return fmt.Errorf("criteria: measure %q is none of %s", l.Measure, strings.Join(measures, ", "))
		case c.Version < 3 && slices.Contains(measuresOfVersion3, l.Measure):
			return fmt.Errorf("criteria: measure %s is of version 3", l.Measure)
		case c.Version < 4 && l.Measure == MeasureAccuracy:
			return fmt.Errorf("criteria: measure %s is of version 4", l.Measure)
		case c.Text != nil && c.Text.Sampled != nil && (l.Measure == MeasureEdit || l.Measure == MeasureLogprob || l.Measure == MeasureAccuracy):
			return fmt.Errorf("criteria: %s compares an answer with the golden one, and sampled texts are not to be the same", l.Measure)
		case l.Measure == MeasureAccuracy && c.Text != nil && c.Text.Decision == DecideToolCalls, l.Measure == MeasureAccuracy && c.Text == nil && c.Outputs[0].Decision.Kind == DecideNearest:
			return fmt.Errorf("criteria: %s needs a decision that a label can be held against", l.Measure)
		case l.Measure == MeasureAccuracy && !(l.Margin < 1):
			return fmt.Errorf("criteria: %s: the margin is a share, and below 1", l.Measure)
		case c.Text != nil && l.Output != "":
			return fmt.Errorf("criteria: %s is of the whole text, and names no output", l.Measure)
		case !(l.Margin > 0):
			return fmt.Errorf("criteria: %s: a limit without a positive margin claims nothing", l.Measure)
		case c.Text == nil && (l.Measure == MeasureSlow || l.Measure == MeasureAccuracy) != (l.Output == ""):
			return fmt.Errorf("criteria: %s: it has to name an output, and only latency and accuracy have none", l.Measure)
		}
	}
	return nil
}
