// Package target is the contract of what can be replayed against: a protocol
// that turns tensors into bytes and back, and a connection that carries them.
//
// The two are apart because judging needs the first only: a verdict is
// computed from the bytes that were on the wire.
package target

import (
	"context"
	"fmt"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
)

// A Protocol encodes questions and decodes answers. It is pure.
type Protocol interface {
	// Encode returns the bytes of a question. The same question has the same
	// bytes.
	Encode(id string, inputs []compare.Tensor, outputs []string) ([]byte, error)

	// Decode reads the answer to a question, strictly. Whatever is not an
	// answer to it is a *[Wrong].
	Decode(q Question, status int, response []byte) (*Answer, error)
}

// A Question is what an answer has to answer.
type Question struct {
	ID      string
	Model   string
	Version string   // "" if any version may answer
	Outputs []string // names, in the order asked for
}

// An Answer is what an environment said.
type Answer struct {
	Model, Version string
	Outputs        []compare.Tensor
}

// A Wrong is an answer that is none: an error, an answer to another question,
// numbers that are not numbers.
type Wrong struct {
	Class   string // "http", "error-in-200", "malformed", "not-finite", "missing-output", "extra-output", "wrong-model", "wrong-version", "wrong-id"
	Message string
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
	Status         int
	Response       []byte
	Failure        *Failure // nil if an answer came whole
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

// A Description is what an environment declares about itself.
type Description struct {
	Server, ServerVersion string
	Model                 string
	Versions              []string
	Platform              string
	Inputs, Outputs       []Spec
	Parameters            map[string]string
}

// A Spec is a tensor as the environment declares it.
type Spec struct {
	Name, Datatype string
	Shape          []int64
}
