// Package target is the contract of what can be replayed against: a protocol
// that turns questions into bytes and bytes into answers, and a connection
// that carries the bytes.
//
// The two are apart because judging needs the first only: a verdict is
// computed from the bytes that were on the wire. Questions are tensors or
// JSON; answers are tensors (embeddings among them), texts with their tokens
// and tool calls, or JSON. A protocol leaves empty what it has no word for,
// and whoever compares finds it missing.
package target

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
)

// A Protocol encodes questions and decodes answers. It is pure: the same
// arguments give the same result, on every machine.
type Protocol interface {
	// Encode returns the bytes of a question: all that is sent for it, but
	// for headers that follow from the bytes. Every parameter that a server
	// could choose a default for is in them. A question that the protocol
	// cannot ask is an error.
	Encode(q Question) ([]byte, error)

	// Decode reads the answer to a question, strictly. Whatever is not an
	// answer to it is a *[Wrong].
	Decode(q Question, r Response) (*Answer, error)
}

// A Question is what is asked, before any protocol has put it into bytes. It
// has either Inputs and Outputs, or a Request.
type Question struct {
	ID      string
	Model   string
	Version string // "" if any version may answer

	// Inputs are tensors, and Outputs the names of those that are asked for,
	// in that order.
	Inputs  []compare.Tensor
	Outputs []string

	// Request is a JSON object in the words of the protocol: the messages of
	// a chat and its parameters, the text to embed, the arguments of a
	// function. It does not name the model: Model does.
	Request json.RawMessage
}

// A Response is what came back, as it was on the wire.
type Response struct {
	Status int // of HTTP, or what stands for it where there is none

	// Header holds the headers that are evidence, by canonical name.
	Header map[string]string

	Body []byte

	// Arrivals say when a body that is a stream arrived, in order. Of others
	// there are none.
	Arrivals []Arrival
}

// An Arrival is a moment in a stream: so many bytes of the body were there
// so long after the question was sent.
type Arrival struct {
	Bytes int
	After time.Duration
}

// An Answer is what an environment said.
type Answer struct {
	Model, Version string

	Outputs []compare.Tensor // of tensors, in the question's order; embeddings are FP32
	Choices []Choice         // of chats and completions, by index
	Value   json.RawMessage  // of free JSON: what the extraction paths found, canonical (RFC 8785)

	Usage  *Usage // nil if it was not said
	Timing Timing

	// Applied is what the answer says of the parameters that were used: a [Prober]
	// holds it against those that were sent.
	Applied map[string]string

	// Declared is what else the server says of itself in the answer, such as
	// a system fingerprint: evidence, and never an identity.
	Declared map[string]string
}

// A Choice is one of the texts of an answer.
type Choice struct {
	Text         string
	Refusal      string
	FinishReason string
	Tokens       []Token // if log probabilities were asked for
	ToolCalls    []ToolCall
}

// A Token is a piece of a text, with the logarithm of its probability as the
// server wrote it.
type Token struct {
	Text    string
	Bytes   []byte // nil if the server does not say
	Logprob float64
	Top     []Alternative // the most likely tokens at this place, by falling probability
}

// An Alternative is a token that could have stood in the place of another.
type Alternative struct {
	Text    string
	Logprob float64
}

// A ToolCall is a function that the model wants called.
type ToolCall struct {
	ID, Name  string
	Arguments string // JSON, as the model wrote it
}

// Usage counts tokens. Prompt tells tokenizers and chat templates apart.
type Usage struct {
	Prompt, Completion, Total int
}

// Timing is when the pieces of a streamed text arrived, from the moment the
// question was sent. It is zero for an answer that was not streamed.
type Timing struct {
	First, Last time.Duration // of the pieces with content
	Pieces      int           // usually one a token
}

// PerPiece is the time from one piece to the next (TPOT, if each is a
// token); 0 if there were fewer than two.
func (t Timing) PerPiece() time.Duration {
	if t.Pieces < 2 {
		return 0
	}
	return (t.Last - t.First) / time.Duration(t.Pieces-1)
}

// A Wrong is an answer that is none: an error, an answer to another question,
// numbers that are not numbers, a parameter that was not heeded.
type Wrong struct {
	Class   string // one of Classes
	Message string
}

// Classes are the ways of answers to be none.
var Classes = []string{
	"http",         // a status that is no success; of any protocol
	"error-in-200", // an error under a status of success, or in the midst of a stream
	"malformed", "not-finite",
	"truncated", // it ends before its own end
	"missing-output", "extra-output",
	"wrong-model", "wrong-version", "wrong-id",
	"ignored", // a parameter of the question was not heeded
	"cached",  // something between says that it answered from a store
}

func (w *Wrong) Error() string { return w.Class + ": " + w.Message }

// Wrongf makes a Wrong.
func Wrongf(class, format string, args ...any) *Wrong {
	return &Wrong{class, fmt.Sprintf(format, args...)}
}

// A Failure is no answer at all.
type Failure struct {
	Class   string // "timeout", "connection", "truncated", "too-large"
	Message string
}

func (f *Failure) Error() string { return f.Class + ": " + f.Message }

// An Exchange is one question sent and what came of it.
type Exchange struct {
	Sent, Received time.Time

	// Response is the answer. If there was a failure its status is 0 and its
	// body what had arrived until then.
	Response

	Failure *Failure // nil if an answer came whole
}

// A Target is a connection to an environment. Its methods may be called
// concurrently.
type Target interface {
	Protocol

	// Describe asks what is served. It returns an error if the environment
	// is not ready.
	Describe(ctx context.Context) (Description, error)

	// Send sends the bytes of a question once, and waits at most for ctx.
	Send(ctx context.Context, request []byte) Exchange
}

// A Prober is a target that can be asked, before the cases, what no single
// answer shows: whether parameters are heeded, whether answers come from a
// store. It asks q, which is a question of the suite, again and with other
// parameters.
type Prober interface {
	Probe(ctx context.Context, q Question) []Check
}

// A Check is one thing that a probe looked at. What could not be looked at is
// not passed.
type Check struct {
	Name   string
	Passed bool
	Detail string
}

// A Description is what an environment declares about itself.
type Description struct {
	Server, ServerVersion string
	Model                 string
	Versions              []string
	Platform              string
	Inputs, Outputs       []Spec // of tensors
	Parameters            map[string]string
}

// A Spec is a tensor as the environment declares it.
type Spec struct {
	Name, Datatype string
	Shape          []int64
}
