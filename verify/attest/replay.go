package attest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Plan is written down, pushed and so logged before the first request of a
// replay: what will be asked of whom, and how the answers will be judged.
type Plan struct {
	Model           Resource `json:"model"`
	Suite           Resource `json:"suite"`
	Criteria        Resource `json:"criteria"`
	EnvironmentName string   `json:"environmentName"`
	Environment     Resource `json:"environment"` // the document, by digest
	Target          Target   `json:"target"`
	Cases           int      `json:"cases"`
	Order           string   `json:"order"` // digest of the list of case ids in the order they are sent
	Concurrency     int      `json:"concurrency"`
	TimeoutMillis   int      `json:"timeoutMillis"`
	Retries         int      `json:"retries"`

	// Probes is how many claim cases, the first by id, are asked again in benign
	// ways to measure the candidate's noise floor.
	Probes int `json:"probes,omitempty"`

	// Threads is a second endpoint of the same model and stack that runs on another
	// number of threads; the cases of Probes are asked there too. nil: threads are
	// not varied.
	Threads *OtherThreads `json:"threads,omitempty"`

	// BothWays is how many cases, the first by id, are asked streamed and whole: a
	// further request for each. It is of suites of texts.
	BothWays int `json:"bothWays,omitempty"`

	// RatePerSecond, if it is not 0, is an open-loop schedule: question i is due
	// i/RatePerSecond seconds after the start, whether or not those before it
	// were answered, and delays count from there.
	RatePerSecond float64 `json:"ratePerSecond,omitempty"`

	// NoiseTraffic is how many other questions are kept in flight while the cases
	// are asked. Their answers are counted, and thrown away.
	NoiseTraffic int `json:"noiseTraffic,omitempty"`

	// MaxWaitMillis is how long the environment may ask to be left alone
	// (Retry-After, with status 429 or 503): nothing at all is asked meanwhile. If
	// it asks for longer the replay stops, and can be gone on with later. 0, as
	// in older plans: what it asks for is not heeded.
	MaxWaitMillis int `json:"maxWaitMillis,omitempty"`

	// MaxRequests and MaxTokens are what the replay may use: requests for cases,
	// probes and noise traffic, in all attempts; and tokens, as the environment
	// counts them. The replay stops before the request that would be too many.
	// 0 is no limit.
	MaxRequests int   `json:"maxRequests,omitempty"`
	MaxTokens   int64 `json:"maxTokens,omitempty"`

	// Continues is the plan under which the replay came to the end of its
	// budget. This one has another budget, and is the same in all else.
	Continues *Resource `json:"continues,omitempty"`

	PlannedAt time.Time `json:"plannedAt"`

	// Deadline is when a plan without a replay counts as inconclusive.
	Deadline time.Time `json:"deadline"`
}

// Validate says what is missing or contradictory, or nil.
func (p Plan) Validate() error {
	for name, r := range map[string]Resource{"model": p.Model, "suite": p.Suite, "criteria": p.Criteria, "environment": p.Environment} {
		if _, err := r.Digest.OCI(); err != nil {
			return fmt.Errorf("plan: %s: %w", name, err)
		}
	}
	switch {
	case p.EnvironmentName == "":
		return errors.New("plan: environmentName is missing")
	case p.Target.Protocol == "" || p.Target.URL == "" || p.Target.Model == "":
		return errors.New("plan: target is incomplete")
	case p.Cases <= 0:
		return errors.New("plan: it has no cases")
	case p.Concurrency <= 0 || p.TimeoutMillis <= 0 || p.Retries < 0:
		return errors.New("plan: concurrency and timeoutMillis must be positive, retries not negative")
	case p.NoiseTraffic < 0 || p.NoiseTraffic > 10_000:
		return errors.New("plan: noiseTraffic must be between 0 and 10000")
	case p.Probes < 0 || p.Probes > p.Cases || !(p.RatePerSecond >= 0) || p.RatePerSecond > 1e6:
		return errors.New("plan: probes must be at most cases, and ratePerSecond between 0 and 1000000")
	case p.BothWays < 0 || p.BothWays > p.Cases:
		return errors.New("plan: bothWays must be between 0 and cases")
	case p.MaxWaitMillis < 0 || p.MaxRequests < 0 || p.MaxTokens < 0:
		return errors.New("plan: maxWaitMillis, maxRequests and maxTokens must not be negative")
	case p.PlannedAt.IsZero() || p.Deadline.IsZero():
		return errors.New("plan: plannedAt and deadline are both needed")
	}
	if t := p.Threads; t != nil {
		if err := t.Validate(); err != nil {
			return fmt.Errorf("plan: %w", err)
		}
		if t.URL == "" || t.URL == p.Target.URL || p.Probes == 0 {
			return errors.New("plan: threads need another URL than the target's, and probes")
		}
	}
	if p.Continues != nil {
		if _, err := p.Continues.Digest.OCI(); err != nil {
			return fmt.Errorf("plan: continues: %w", err)
		}
	}
	return nil
}

// Follows says why a plan is not one that goes on under another budget with what
// was begun under an earlier one, or nil.
func (p Plan) Follows(earlier Plan) error {
	if p.Continues == nil {
		return errors.New("plan: it continues no other")
	}
	if p.PlannedAt.Before(earlier.PlannedAt) {
		return errors.New("plan: it was made before the one that it continues")
	}
	for _, x := range []*Plan{&p, &earlier} {
		x.MaxRequests, x.MaxTokens, x.Continues, x.PlannedAt, x.Deadline = 0, 0, nil, time.Time{}, time.Time{}
	}
	a, err1 := Marshal(p)
	b, err2 := Marshal(earlier)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return errors.New("plan: it changes more than the budget of the one that it continues")
	}
	return nil
}

// An Observation is one attempt at one case: a line of observations.jsonl.
// It holds what was seen on the wire, and nothing that was concluded from it.
type Observation struct {
	Case    string `json:"case"`
	Attempt int    `json:"attempt"` // from 1

	// Probe says that the case is asked again in a benign way, and in which; what
	// comes of it measures noise, and is never an answer to the case.
	Probe string `json:"probe,omitempty"`

	// DueAt is when the question should have been sent, if there is a schedule.
	DueAt *time.Time `json:"dueAt,omitempty"`

	// WaitedMillis is how long the question was held back because the
	// environment had asked to be left alone.
	WaitedMillis int64 `json:"waitedMillis,omitempty"`

	Request    string    `json:"request"` // digest of the bytes sent
	SentAt     time.Time `json:"sentAt"`
	ReceivedAt time.Time `json:"receivedAt"`

	// Status, Header and Response are the answer, if one came whole. Header
	// has what decoding needs and what is evidence, by canonical name. Beside
	// an error, Response is what had arrived until then.
	Status   int               `json:"status,omitempty"`
	Header   map[string]string `json:"header,omitempty"`
	Response []byte            `json:"response,omitempty"`

	// Arrivals say when the bytes of a stream came.
	Arrivals []Arrival `json:"arrivals,omitempty"`

	// Error is why none did.
	Error *ObservationError `json:"error,omitempty"`
}

// An Arrival is a moment in a stream: so many bytes of the response were there
// so many microseconds after the question was sent.
type Arrival struct {
	Bytes  int   `json:"bytes"`
	Micros int64 `json:"micros"`
}

// Probes: ways to ask again that should change nothing.
const (
	ProbeRepeat = "repeat" // the same bytes
	ProbeULP    = "ulp"    // each input moved by one unit in the last place
	ProbeBatch  = "batch"  // together with others; the case is the first of them

	// ProbeThreads is the same bytes, sent to the endpoint on another number of
	// threads.
	ProbeThreads = "threads"

	// ProbeOtherWay asks streamed what the case asks whole, and whole what it streams.
	// It measures no noise, but whether the two answers are the same.
	ProbeOtherWay = "other-way"
)

// Probes lists them.
var Probes = []string{ProbeRepeat, ProbeULP, ProbeBatch, ProbeThreads, ProbeOtherWay}

// An ObservationError is a failure to get an answer.
type ObservationError struct {
	Class   string `json:"class"` // "timeout", "connection", "truncated", "too-large", or [Interrupted]
	Message string `json:"message"`
}

// Interrupted is the class of an attempt during which the runner itself was
// stopped: the question was, or was about to be, sent, and what came of it is not
// known. It is not sent again as the same attempt.
const Interrupted = "interrupted"

// Validate says why the record of the attempt does not hold together, or nil.
func (o Observation) Validate() error {
	switch {
	case o.Case == "":
		return errors.New("observation without a case")
	case o.Attempt < 1:
		return fmt.Errorf("observation of %s: attempt is missing", o.Case)
	case o.Request == "":
		return fmt.Errorf("observation of %s: request is missing", o.Case)
	case o.SentAt.IsZero() || o.ReceivedAt.IsZero() || o.ReceivedAt.Before(o.SentAt):
		return fmt.Errorf("observation of %s: its times are missing or in the wrong order", o.Case)
	case o.Probe != "" && !slices.Contains(Probes, o.Probe):
		return fmt.Errorf("observation of %s: probe %q is unknown", o.Case, o.Probe)
	case o.WaitedMillis < 0:
		return fmt.Errorf("observation of %s: waitedMillis is negative", o.Case)
	case o.DueAt != nil && o.SentAt.Before(*o.DueAt):
		return fmt.Errorf("observation of %s: it was sent before it was due", o.Case)
	case o.Error == nil && (o.Status == 0 || len(o.Response) == 0):
		return fmt.Errorf("observation of %s: it has neither an answer nor an error", o.Case)
	case o.Error != nil && (o.Error.Class == "" || o.Error.Message == ""):
		return fmt.Errorf("observation of %s: its error is incomplete", o.Case)
	case o.Error != nil && o.Status != 0:
		return fmt.Errorf("observation of %s: it has both an answer and an error", o.Case)
	}
	last := Arrival{}
	for _, a := range o.Arrivals {
		if a.Bytes <= last.Bytes || a.Bytes > len(o.Response) || a.Micros < last.Micros {
			return fmt.Errorf("observation of %s: the arrivals of its stream are not in order", o.Case)
		}
		last = a
	}
	return nil
}

// A Replay says what was done with a plan: the document of a replay artifact.
type Replay struct {
	Plan         Resource  `json:"plan"`
	Model        Resource  `json:"model"`
	Environment  Resource  `json:"environment"`
	StartedAt    time.Time `json:"startedAt"`
	FinishedAt   time.Time `json:"finishedAt"`
	Observations int       `json:"observations"`

	// NoiseAnswers and NoiseFailures count what came of the noise traffic, and
	// Interrupted the attempts during which the runner was stopped.
	NoiseAnswers  int `json:"noiseAnswers,omitempty"`
	NoiseFailures int `json:"noiseFailures,omitempty"`
	Interrupted   int `json:"interrupted,omitempty"`

	// Preflight is what was found before the first case; nothing in it is
	// judged as a case.
	Preflight []PreflightCheck `json:"preflight"`
}

// A PreflightCheck is one question asked before the cases.
type PreflightCheck struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	Detail string `json:"detail"`
}

// Validate says what is missing or contradictory, or nil.
func (r Replay) Validate() error {
	for name, x := range map[string]Resource{"plan": r.Plan, "model": r.Model, "environment": r.Environment} {
		if _, err := x.Digest.OCI(); err != nil {
			return fmt.Errorf("replay: %s: %w", name, err)
		}
	}
	if r.StartedAt.IsZero() || r.FinishedAt.Before(r.StartedAt) {
		return errors.New("replay: its times are missing or in the wrong order")
	}
	return nil
}

// A Report is what judging a replay came to. It is a function of the suite,
// the criteria, the plan and the observations, to the byte. Numbers are
// decimal text of at most 9 significant digits.
type Report struct {
	Verdict Verdict  `json:"verdict"`
	Reasons []string `json:"reasons"` // why it is not CERTIFIED; empty if it is
	Claim   string   `json:"claim"`   // the result in one sentence

	// Difference is what is different, in words.
	Difference string `json:"difference"`

	EnvironmentName string   `json:"environmentName"`
	Environment     Resource `json:"environment"`
	Model           Resource `json:"model"`
	Suite           Resource `json:"suite"`
	Criteria        Resource `json:"criteria"`
	Plan            Resource `json:"plan"`

	Cases    Counts                   `json:"cases"`
	Flips    []FlipCount              `json:"flips"`  // of claim cases, by direction
	Slices   []SliceCount             `json:"slices"` // of claim cases, by slice
	Border   BorderCount              `json:"border"`
	Numerics []NumericSummary         `json:"numerics"`
	Errors   map[string]int           `json:"errors"` // attempts that did not answer well, by class
	Metrics  []Metric                 `json:"metrics"`
	Power    OperatingCharacteristics `json:"operatingCharacteristics"`
	Examples []Example                `json:"examples"` // the first cases that differ

	// The rest is of criteria of version 2.

	Gates     []Gate          `json:"gates,omitempty"`     // in the order in which they are tested
	Distances []DistanceCount `json:"distances,omitempty"` // of all cases, by how near the reference is to another decision
	Latency   *Latency        `json:"latency,omitempty"`
	Probes    *ProbeCounts    `json:"probes,omitempty"`
	Texts     *TextSummary    `json:"texts,omitempty"` // of a suite of texts

	// Traffic is of plans that say how long the environment may ask to be left
	// alone, or have a budget.
	Traffic *Traffic `json:"traffic,omitempty"`

	// The rest is of criteria of version 3.

	Embeddings []EmbeddingSummary `json:"embeddings,omitempty"`

	// The rest is of criteria of version 4.

	Sampled  *SampledSummary  `json:"sampled,omitempty"`
	Accuracy *AccuracySummary `json:"accuracy,omitempty"` // if claim cases have labels
	Clusters *ClusterSummary  `json:"clusters,omitempty"` // if claim cases come in clusters
}

// A SampledSummary is what a report says of texts that were drawn at random.
type SampledSummary struct {
	Unit    string `json:"unit"`
	Prefix  int    `json:"prefix"` // symbols that were compared of each text; 0 is all
	Seeds   string `json:"seeds"`
	Prompts int    `json:"prompts"`
	Samples int    `json:"samples"` // of each prompt
	Symbols int    `json:"symbols"` // of the environment's texts that were compared
	Beyond  int    `json:"beyond"`  // of them, behind the prefix and so not compared

	References []SampledReference `json:"references"` // the first, and those accepted beside it
	Nearest    string             `json:"nearest"`    // of them, the one whose claim is best shown

	// Unmet is a share of all prompts: a difference that is confined to fewer of them,
	// however large, may have been in none of these (with probability beta or more).
	Unmet string `json:"unmet"`

	// Drift is the distance between the earlier and the later half of the
	// environment's own samples, around 0 if it did not change meanwhile, and
	// "unknown" if too many of them are missing. It decides nothing.
	Drift  string        `json:"drift"`
	Length string        `json:"length"` // mean number of symbols of the environment's texts
	Finish []FinishCount `json:"finish"` // why texts ended
}

// A SampledReference is how far the environment is from one reference.
type SampledReference struct {
	Name     string `json:"name"`
	Distance string `json:"distance"` // mean over the prompts; unbiased, so it may be below 0
	Lower    string `json:"lower"`    // with confidence 1 - alpha
	Upper    string `json:"upper"`    // with the confidence that is left when there are several references
	P        string `json:"p"`        // of "the distance is the margin or more"
	Beyond   string `json:"beyond"`   // of "the distance is within the margin"

	// SameP is the p of "both are the same distribution", permuted within prompts:
	// a small one shows a difference, which may be a harmless one, and a large one
	// shows nothing. It decides nothing.
	SameP string `json:"sameP"`

	// AlikeP is the p of "neither was drawn with an eye to the other": a small one
	// shows that they have more in common than two draws of one distribution, as
	// with a shared seed or a store of answers. Such likeness certifies nothing.
	AlikeP string `json:"alikeP"`
	Length string `json:"length"` // mean number of symbols of the reference's texts
}

// A FinishCount is how many texts ended for a reason.
type FinishCount struct {
	Reason      string `json:"reason"`
	Reference   int    `json:"reference"`
	Environment int    `json:"environment"`
}

// An AccuracySummary holds decisions against the labels of claim cases.
type AccuracySummary struct {
	Cases       int    `json:"cases"`       // that have a label
	Clusters    int    `json:"clusters"`    // in which they come; as many as cases if each is its own
	Reference   int    `json:"reference"`   // cases that the reference is right in
	Environment int    `json:"environment"` // cases that the environment is right in
	Worse       int    `json:"worse"`       // from right to wrong
	Better      int    `json:"better"`      // from wrong to right
	Unanswered  int    `json:"unanswered"`  // of the environment, which are wrong
	Loss        string `json:"loss"`        // of accuracy, as a share of the cases

	// Lower and Upper bound the loss, each with confidence 1 - alpha, by a
	// bootstrap that draws clusters (or cases, if each is its own); "" with too few.
	Lower string `json:"lower,omitempty"`
	Upper string `json:"upper,omitempty"`

	// P is the exact p (McNemar) of "it gets worse as often as better", counting
	// clusters by whether more of their cases got worse or better; MidP is less
	// conservative. Both are of a test of difference, in which a large p shows
	// nothing: what can be passed is the limit accuracy-loss.
	P    string `json:"p"`
	MidP string `json:"midP"`

	// Unseen is the net change, as a share of the clusters, that this test would
	// have found with probability 1 - beta.
	Unseen string `json:"unseen"`
}

// A ClusterSummary is what it makes that cases come in clusters.
type ClusterSummary struct {
	Clusters int `json:"clusters"` // of claim cases
	Cases    int `json:"cases"`
	Largest  int `json:"largest"`  // cases in one cluster
	Flipping int `json:"flipping"` // clusters with a decision that flips: what the plan counts

	// FlipRate is of cases, with bounds by a bootstrap that draws clusters, each
	// with confidence 1 - alpha. It decides nothing.
	FlipRate string `json:"flipRate"`
	Lower    string `json:"lower"`
	Upper    string `json:"upper"`
}

// An EmbeddingSummary is how far an output's vectors were off, over all cases
// that were compared. Distances are cosine distances (1 - cosine).
type EmbeddingSummary struct {
	Output    string `json:"output"`
	Dimension int    `json:"dimension"`
	Vectors   int    `json:"vectors"`   // that were compared
	Same      int    `json:"same"`      // to the bit
	Exceeding int    `json:"exceeding"` // over the tolerance

	MaxDistance    string `json:"maxDistance"`
	Tolerance      string `json:"tolerance"`
	Noise          string `json:"noise"`          // the reference's floor
	CandidateNoise string `json:"candidateNoise"` // this environment's
	MinNorm        string `json:"minNorm"`        // the least norm as a share of the reference's
	MaxNorm        string `json:"maxNorm"`        // and the largest

	// Index is how many golden vectors the nearest were looked for among, and
	// Overlap how many of the reference's ten nearest are among the environment's
	// ten, as a share of all.
	Index     int    `json:"index"`
	Overlap   string `json:"overlap"`
	Histogram []Bin  `json:"histogram"` // of distances; from 0 are those that are the same
}

// Traffic is what a replay took to be made. Nothing in it is judged, but that it
// is within the budget.
type Traffic struct {
	Attempts    int   `json:"attempts"`    // at cases and probes
	Again       int   `json:"again"`       // of those, the ones after the first
	RateLimited int   `json:"rateLimited"` // that were answered with status 429 or 503
	HeldBack    int   `json:"heldBack"`    // that waited because the environment had asked to be left alone
	MaxWait     int64 `json:"maxWait"`     // the longest of those waits, in milliseconds

	Requests    int   `json:"requests"` // attempts and noise traffic
	MaxRequests int   `json:"maxRequests,omitempty"`
	Tokens      int64 `json:"tokens,omitempty"` // counted only if there is a budget of them
	MaxTokens   int64 `json:"maxTokens,omitempty"`
	Budgets     int   `json:"budgets"` // plans, each with a larger budget, under which the replay was made
}

// A Gate is a family of hypotheses, all of which have to be shown; those of a
// later gate are tested only if all before it passed.
type Gate struct {
	Name       string       `json:"name"`
	Tested     bool         `json:"tested"`
	Passed     bool         `json:"passed"`
	Hypotheses []Hypothesis `json:"hypotheses"`
}

// A Hypothesis is one thing to be shown, with what could have gone unseen.
type Hypothesis struct {
	Name     string `json:"name"`
	Margin   string `json:"margin"`
	Value    string `json:"value"`
	Bound    string `json:"bound"`    // what the value is shown to be below, with confidence 1 - alpha
	P        string `json:"p"`        // of "it does not hold"
	Adjusted string `json:"adjusted"` // within the gate (Holm)
	N        int    `json:"n"`        // independent cases
	Unseen   string `json:"unseen"`   // the smallest effect that is refused with probability 1 - beta
	Holds    bool   `json:"holds"`
}

// A DistanceCount is how many cases lie at a distance to another decision, and
// how many of them flip.
type DistanceCount struct {
	From  string `json:"from"` // up to twice that
	Cases int    `json:"cases"`
	Flips int    `json:"flips"`
}

// Latency is in microseconds, from when a question was due (or, without a
// schedule, sent) to when its answer was there.
type Latency struct {
	P50      int64 `json:"p50"`
	P90      int64 `json:"p90"`
	P99      int64 `json:"p99"`
	Max      int64 `json:"max"`
	Answers  int   `json:"answers"`
	Schedule bool  `json:"schedule"`
	Bins     []Bin `json:"bins"`

	// Of answers that were streamed: to the first piece of the text, and from one
	// token to the next on average over an answer (version 3).
	FirstToken *Delays `json:"firstToken,omitempty"`
	PerToken   *Delays `json:"perToken,omitempty"`
}

// Delays are in microseconds.
type Delays struct {
	P50     int64 `json:"p50"`
	P90     int64 `json:"p90"`
	P99     int64 `json:"p99"`
	Max     int64 `json:"max"`
	Answers int   `json:"answers"`
	Bins    []Bin `json:"bins"`
}

// A Bin counts what lies between From and twice that.
type Bin struct {
	From  string `json:"from"`
	Count int    `json:"count"`
}

// ProbeCounts say what came of asking again in benign ways.
type ProbeCounts struct {
	Planned int `json:"planned"`
	Used    int `json:"used"`
	Failed  int `json:"failed"`

	// Threads are those on another number of threads, and ReferenceThreads says that
	// the reference was asked so too; nil if threads were not varied there.
	Threads          *ThreadCounts `json:"threads,omitempty"`
	ReferenceThreads *Threads      `json:"referenceThreads,omitempty"`
}

// Counts say how many cases there were, and how many of them say something.
type Counts struct {
	Claim    int `json:"claim"`
	Border   int `json:"border"`
	Compared int `json:"compared"` // answered well at the first attempt
	Missing  int `json:"missing"`  // without any attempt
	Failed   int `json:"failed"`   // whose first attempt got no answer
	Wrong    int `json:"wrong"`    // whose first answer was not one to the question
	Damaged  int `json:"damaged"`  // whose record does not hold together
	Retried  int `json:"retried"`  // with more than one attempt
	Elements int `json:"elements"` // numbers that were compared

	// Interrupted are cases whose first attempt the runner did not live to see the
	// end of: the next one is judged (version 2).
	Interrupted int `json:"interrupted,omitempty"`
}

// A FlipCount is how many decisions went from one to another.
type FlipCount struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Cases int    `json:"cases"`
}

// A SliceCount is the flips in one group of cases.
type SliceCount struct {
	Slice string `json:"slice"` // "key=value"
	Cases int    `json:"cases"`
	Flips int    `json:"flips"`
}

// BorderCount is what the border cases showed. Ties are flips of cases whose
// reference lies closer to the decision than the tolerance.
type BorderCount struct {
	Flips int `json:"flips"`
	Ties  int `json:"ties"`
}

// A NumericSummary is how far an output's numbers were off.
type NumericSummary struct {
	Output      string `json:"output"`
	Elements    int    `json:"elements"`
	Exceeding   int    `json:"exceeding"`   // elements over the tolerance
	BitsDiffer  int    `json:"bitsDiffer"`  // elements that are not the same bits
	MaxAbsolute string `json:"maxAbsolute"` // largest |got - want|
	MaxScaled   string `json:"maxScaled"`   // largest difference as a share of its tolerance
	Bias        string `json:"bias"`        // mean of got - want of the element that decides; for labels of all
	Tolerance   string `json:"tolerance"`   // the absolute part
	Noise       string `json:"noise"`       // the reference's floor

	// The rest is of criteria of version 2.

	CandidateNoise string `json:"candidateNoise,omitempty"`
	MaxULP         string `json:"maxULP,omitempty"`
	Cosine         string `json:"cosine,omitempty"`
	SNR            string `json:"snr,omitempty"`       // in decibels, "inf" without an error
	Histogram      []Bin  `json:"histogram,omitempty"` // of |got - want|; from 0 are those that are the same
}

// An Example is a case that differs.
type Example struct {
	Case   string `json:"case"`
	What   string `json:"what"`
	Detail string `json:"detail"`
}
