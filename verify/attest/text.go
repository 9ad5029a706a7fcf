package attest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// KindTexts is the kind of a suite whose cases ask with a request in the words
// of their protocol, and whose golden answers are texts. The kind "" is of
// tensors.
const KindTexts = "texts"

// KindEmbeddings is the kind of a suite whose cases ask with a request as those
// of texts do, and whose golden answers are vectors.
const KindEmbeddings = "embeddings"

// A Text is a case of a suite of texts, and what the reference answered: a line
// of texts.jsonl.
type Text struct {
	ID string `json:"id"` // of the case

	// Request is the JSON of the request, as it was written. It is kept as text
	// because the canonical form would reorder it, and a chat template may show
	// a tool's schema to the model in the order in which it was written.
	Request string `json:"request"`

	// Choices are the golden answers as they were decoded, by index. In a suite of
	// embeddings there are none: the golden vector is among the tensors.
	Choices []TextChoice `json:"choices"`

	// Accepted are the golden answers of further references, in the order in which
	// the suite names them (sampled texts).
	Accepted []AcceptedChoices `json:"accepted,omitempty"`

	// Usage is what the reference counted, if it said so.
	Usage *TextUsage `json:"usage,omitempty"`
}

// AcceptedChoices are what one of the further references answered.
type AcceptedChoices struct {
	Name    string       `json:"name"`
	Choices []TextChoice `json:"choices"`
}

// A TextChoice is one of the texts of an answer.
type TextChoice struct {
	Text         string         `json:"text"`
	Refusal      string         `json:"refusal,omitempty"`
	FinishReason string         `json:"finishReason"`
	ToolCalls    []TextToolCall `json:"toolCalls,omitempty"`
	Tokens       []TextToken    `json:"tokens,omitempty"` // if log probabilities were asked for
}

// A TextToolCall is a function that the model wants called. Its id is made up
// anew for each answer, and so not kept.
type TextToolCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"` // JSON, as the model wrote it
}

// A TextToken is a piece of a text with the natural logarithm of its
// probability, and the most likely pieces in its place.
type TextToken struct {
	Token   string            `json:"token"`
	Logprob float64           `json:"logprob"`
	Top     []TextAlternative `json:"top,omitempty"`
}

// A TextAlternative is a token that could have stood in the place of another.
type TextAlternative struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
}

// TextUsage counts tokens.
type TextUsage struct {
	Prompt     int `json:"prompt"`
	Completion int `json:"completion"`
}

// Validate says what is missing or contradictory, or nil.
func (t Text) Validate() error {
	if t.ID != "" && len(t.Choices) == 0 {
		return fmt.Errorf("text of case %s: it has no golden answer", t.ID)
	}
	return t.ValidateRequest()
}

// ValidateRequest is Validate for a case of a suite of embeddings, whose golden
// answer is elsewhere.
func (t Text) ValidateRequest() error {
	switch {
	case t.ID == "":
		return errors.New("text: id is missing")
	case !strings.HasPrefix(strings.TrimSpace(t.Request), "{"):
		return fmt.Errorf("text of case %s: its request is no JSON object", t.ID)
	}
	if err := CheckJSON([]byte(t.Request)); err != nil {
		return fmt.Errorf("text of case %s: request: %w", t.ID, err)
	}
	for i, c := range t.Choices {
		for k, x := range c.Tokens {
			if !(x.Logprob <= 0) {
				return fmt.Errorf("text of case %s: choice %d: token %d has log probability %v", t.ID, i, k, x.Logprob)
			}
		}
	}
	if u := t.Usage; u != nil && (u.Prompt < 0 || u.Completion < 0) {
		return fmt.Errorf("text of case %s: its usage is negative", t.ID)
	}
	return nil
}

// Measures of the reference's noise floor in a suite of texts: the largest of
// all cases when they were asked again.
const (
	NoiseDecision = "decision"      // the share of cases whose decision changed
	NoiseEdit     = "edit-distance" // as a share of the longer text
	NoiseLogprob  = "logprob"       // the largest |difference| of a token's log probability
)

// NoiseOfTexts lists them.
var NoiseOfTexts = []string{NoiseDecision, NoiseEdit, NoiseLogprob}

// TextCriteria say what must not flip in an answer that is a text.
type TextCriteria struct {
	// Decision is one of TextDecisions.
	Decision string `json:"decision"`

	// Pattern (RE2) has one group, and Pointer is a JSON Pointer (RFC 6901): one
	// of them says what the answer in a text is, for [DecideAnswer].
	Pattern string `json:"pattern,omitempty"`
	Pointer string `json:"pointer,omitempty"`

	// Tie is the lead in log probability up to which two tokens count as equally
	// likely: a border case that flips there is a tie.
	Tie float64 `json:"tie"`

	// BothWays says that every case is asked streamed and whole, and that the two
	// answers have to be the same (from version 3 on).
	BothWays bool `json:"bothWays,omitempty"`

	// Sampled is for texts that are drawn at random ([DecideSampled], version 4).
	Sampled *SampledCriteria `json:"sampled,omitempty"`
}

// SampledCriteria say how texts are compared that are drawn at random, at a
// temperature above 0. No two of them need be the same; what is compared is the
// distribution that they are drawn from, prompt by prompt: the squared maximum
// mean discrepancy with the kernel "share of positions with the same symbol"
// (Gao, Liang and Guestrin, arXiv 2410.20247). It is 0 for the same distribution
// and 2 for two texts that are always the same and have nothing in common.
//
// The plan is then about that distance and not about flips: an environment is
// certified if its mean over the prompts is shown to be below Margin, with
// confidence 1 - Alpha. N counts prompts, and Allowed is 0. Each sample is a case
// (with several choices, so many samples), and the cases of one prompt have its
// id as their cluster.
type SampledCriteria struct {
	Samples int    `json:"samples"`          // of each prompt, from each reference and from the environment
	Unit    string `json:"unit"`             // of symbols: UnitCharacters or UnitTokens
	Prefix  int    `json:"prefix,omitempty"` // symbols from the beginning that are compared; 0 is all
	Seeds   string `json:"seeds"`            // SeedsEach or SeedsNone

	// Temperature is put into every request; 0 is that each says its own.
	Temperature float64 `json:"temperature,omitempty"`
}

// MinPrompts is how many prompts sampled texts need at least: with fewer, a mean
// over them has no error that can be relied upon. MaxSamples is how many samples
// of each there are at most.
const (
	MinPrompts = 10
	MaxSamples = 999
)

// Units of symbols. For tokens the requests have to ask for log probabilities.
const (
	UnitCharacters = "characters" // Unicode code points
	UnitTokens     = "tokens"
)

// What is sent as the seed of a request. Two runs of one program with one seed
// draw the same texts, and look more alike than what they are drawn from; so no
// two requests of a suite and its replays have the same one.
const (
	SeedsEach = "each" // one for every sample, and others for the environment than for each reference
	SeedsNone = "none" // no seed: the server draws its own
)

// A SampledFloor is what the earlier half of a reference's samples and the later
// one show when they are compared as reference and environment are. They are half
// as many, so that its numbers are on the careful side of what a replay shows.
type SampledFloor struct {
	Distance float64 `json:"distance"` // unbiased, and so around 0, if the reference did not change
	Upper    float64 `json:"upper"`    // it is below that, with the plan's confidence
	Unseen   float64 `json:"unseen"`   // the smallest distance that would be refused with probability 1 - Beta
}

// Decisions of texts. Each is made of all choices of an answer, by index.
const (
	DecideText      = "exact-text"       // text, refusal, tool calls and finish reason
	DecideAnswer    = "extracted-answer" // what Pattern or Pointer finds, normalized
	DecideToolCalls = "tool-calls"       // functions in order, arguments as canonical JSON
	DecideToken     = "first-token"      // the first token; the request has to ask for log probabilities
	DecideSampled   = "sampled-text"     // nothing in one answer: see SampledCriteria
)

// TextDecisions lists them.
var TextDecisions = []string{DecideText, DecideAnswer, DecideToolCalls, DecideToken, DecideSampled}

// Measures of texts that a limit can be on, one number a case.
const (
	MeasureEdit    = "edit-distance"      // edits of code points, as a share of the longer text
	MeasureLogprob = "logprob-difference" // mean |difference| of the tokens' log probabilities, up to the first token that differs

	// Of texts that are streamed, all of a suite's (version 3). Like MeasureSlow they
	// are of 99 % of answers and in milliseconds.
	MeasureFirstToken = "slow-first-token" // from when the question was due to the first piece of the text
	MeasureToken      = "slow-token"       // from one token to the next, on average over an answer
)

// MeasuresOfTexts lists them.
var MeasuresOfTexts = []string{MeasureEdit, MeasureLogprob, MeasureSlow, MeasureFirstToken, MeasureToken, MeasureAccuracy}

func (c TextCriteria) validate() error {
	switch {
	case !slices.Contains(TextDecisions, c.Decision):
		return fmt.Errorf("criteria: decision %q is none of %s", c.Decision, strings.Join(TextDecisions, ", "))
	case (c.Decision == DecideSampled) != (c.Sampled != nil):
		return fmt.Errorf("criteria: %s needs to say how many samples, and no other decision may", DecideSampled)
	case c.Sampled != nil && (c.Sampled.Samples < 4 || c.Sampled.Samples > MaxSamples || c.Sampled.Prefix < 0):
		return fmt.Errorf("criteria: sampled texts need from 4 to %d samples of a prompt, and a prefix that is not negative", MaxSamples)
	case c.Sampled != nil && !(c.Sampled.Temperature >= 0 && c.Sampled.Temperature <= 100):
		return fmt.Errorf("criteria: temperature %v is none", c.Sampled.Temperature)
	case c.Sampled != nil && c.Sampled.Seeds != SeedsEach && c.Sampled.Seeds != SeedsNone:
		return fmt.Errorf("criteria: seeds %q is neither %s nor %s", c.Sampled.Seeds, SeedsEach, SeedsNone)
	case c.Sampled != nil && c.Sampled.Unit != UnitCharacters && c.Sampled.Unit != UnitTokens:
		return fmt.Errorf("criteria: unit %q is neither %s nor %s", c.Sampled.Unit, UnitCharacters, UnitTokens)
	case c.Sampled != nil && c.BothWays:
		return errors.New("criteria: what is drawn at random is another text each time, streamed or whole")
	case !(c.Tie >= 0):
		return errors.New("criteria: text.tie must not be negative")
	case c.Decision != DecideAnswer && (c.Pattern != "" || c.Pointer != ""):
		return fmt.Errorf("criteria: a pattern or a pointer is for %s, not for %s", DecideAnswer, c.Decision)
	case c.Decision == DecideAnswer && (c.Pattern == "") == (c.Pointer == ""):
		return fmt.Errorf("criteria: %s needs a pattern or a pointer, and not both", DecideAnswer)
	case c.Pointer != "" && !strings.HasPrefix(c.Pointer, "/"):
		return fmt.Errorf("criteria: %q is no JSON Pointer: it begins with a slash", c.Pointer)
	}
	if c.Pattern != "" {
		p, err := regexp.Compile(c.Pattern)
		if err != nil {
			return fmt.Errorf("criteria: pattern: %w", err)
		}
		if p.NumSubexp() != 1 {
			return fmt.Errorf("criteria: pattern %q has %d groups, and needs one: the answer", c.Pattern, p.NumSubexp())
		}
	}
	return nil
}

// A TextSummary is what a report says of texts, over all cases that were
// compared.
type TextSummary struct {
	Decision   string `json:"decision"`
	Choices    int    `json:"choices"`
	Same       int    `json:"same"`       // to the byte
	Normalized int    `json:"normalized"` // after normal form C and with white space as one space
	Diverging  int    `json:"diverging"`

	// Earliest is the first code point that differs in any choice, from 0; -1 if
	// none does. Halfway is the share of diverging texts that do so in the first
	// half of the reference's.
	Earliest int `json:"earliest"`
	Halfway  int `json:"halfway"`

	Finish     int `json:"finish"`     // choices that ended for another reason
	NoAnswer   int `json:"noAnswer"`   // choices without an answer to extract
	ToolCalls  int `json:"toolCalls"`  // choices with other tool calls
	Completion int `json:"completion"` // answers with another number of tokens
	Unstable   int `json:"unstable"`   // probes that changed the decision

	MaxEdit    string `json:"maxEdit"` // as a share of the longer text
	Tokens     int    `json:"tokens"`  // positions whose log probabilities were compared
	MaxLogprob string `json:"maxLogprob"`
	TopMissing int    `json:"topMissing"` // of the reference's most likely tokens, those that were not listed

	BothWays *BothWays `json:"bothWays,omitempty"` // of plans that have cases asked streamed and whole
}

// BothWays counts the cases that were asked streamed and whole.
type BothWays struct {
	Planned  int `json:"planned"`
	Compared int `json:"compared"`
	Same     int `json:"same"`

	// Differ counts what is not the same, by class: "stream-text", "stream-tool-calls",
	// "stream-choices", "stream-refusal", "stream-finish-reason", "stream-logprobs",
	// "stream-usage", or how the second answer is none.
	Differ map[string]int `json:"differ"`
}
