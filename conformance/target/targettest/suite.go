// Package targettest has the suite that every target adapter passes, and
// faithful servers that misbehave on request.
package targettest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
)

// FP32 makes a tensor.
func FP32(name string, shape []int64, values ...float32) compare.Tensor {
	t := compare.Tensor{Name: name, Datatype: "FP32", Shape: shape}
	for _, v := range values {
		t.Bits = binary.LittleEndian.AppendUint32(t.Bits, math.Float32bits(v))
	}
	return t
}

// A Subject is an adapter that the suite is to look at.
type Subject struct {
	// Open starts an environment that behaves but for what fault says before
	// each answer (nil: it behaves), and connects to it. The environment ends
	// with the test.
	Open func(t testing.TB, fault func(n int) string) (target.Target, Environment)

	// Question is one that the environment answers.
	Question target.Question

	// Check looks whether an answer is the right one to Question.
	Check func(t testing.TB, a *target.Answer)

	// Faults say what each word of fault has to come to: a class of
	// [target.Wrong] or [target.Failure], or Answer for one that only a
	// comparison can find.
	Faults map[string]string

	// Excused are words of Required that this protocol cannot speak, with the
	// reason.
	Excused map[string]string

	// Bad are questions that cannot be asked in this protocol.
	Bad map[string]target.Question
}

// An Environment is the far end of a connection under test.
type Environment interface {
	Requests() int // questions that arrived
	Close()        // nobody listens from here on
}

// Answer is in the place of a class for a fault that shows in the content.
const Answer = "an answer"

// Required are the faults that every adapter is tested with, or excused from.
var Required = []string{
	"http-500", "http-429", "hang", "close", "empty", "not-json", "truncated", "error-in-200", "wrong-id", "wrong-model", "wrong-version", "cached",
}

// Test is the suite.
func Test(t *testing.T, s Subject) {
	behave := func(int) string { return "" }
	// Only who waits for nothing waits a short time: a machine may be busy.
	patience := 30 * time.Second
	ask := func(t *testing.T, tg target.Target) (*target.Answer, target.Exchange, error) {
		t.Helper()
		raw, err := tg.Encode(s.Question)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		sent := bytes.Clone(raw)
		x := tg.Send(ctx, raw)
		if !bytes.Equal(raw, sent) {
			t.Error("Send changed the question's bytes")
		}
		checkExchange(t, x)
		if x.Failure != nil {
			return nil, x, x.Failure
		}
		a, err := tg.Decode(s.Question, x.Response)
		if (a == nil) == (err == nil) {
			t.Errorf("answer %+v and error %v", a, err)
		}
		return a, x, err
	}
	t.Run("the same question has the same bytes", func(t *testing.T) {
		tg, _ := s.Open(t, behave)
		first, err := tg.Encode(s.Question)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // the order of a map would show
			if again, err := tg.Encode(s.Question); err != nil || !bytes.Equal(first, again) {
				t.Fatalf("%q, %v; then %q", first, err, again)
			}
		}
		other := s.Question
		other.ID += "-2"
		if s.Excused["wrong-id"] == "" {
			if again, _ := tg.Encode(other); bytes.Equal(first, again) {
				t.Error("questions with two ids have the same bytes, and an answer can be taken for another's")
			}
		}
	})
	t.Run("a right answer", func(t *testing.T) {
		tg, env := s.Open(t, behave)
		a, x, err := ask(t, tg)
		if err != nil {
			t.Fatal(err)
		}
		s.Check(t, a)
		if n := env.Requests(); n != 1 {
			t.Errorf("one question arrived %d times", n)
		}
		again, err := tg.Decode(s.Question, x.Response)
		if err != nil || !reflect.DeepEqual(a, again) {
			t.Errorf("decoded again it is %+v, %v", again, err)
		}
		// Whatever is cut off its end, it is not another answer.
		for n := range x.Body {
			cut := x.Response
			cut.Body = x.Body[:n]
			cut.Arrivals = nil
			if b, err := tg.Decode(s.Question, cut); err == nil {
				b.Timing = a.Timing
				if !reflect.DeepEqual(a, b) {
					t.Fatalf("the first %d of %d bytes are another answer: %+v", n, len(x.Body), b)
				}
			}
		}
		if s.Question.Version != "" && s.Excused["wrong-version"] == "" {
			other := s.Question
			other.Version += "1"
			if _, err := tg.Decode(other, x.Response); classOf(err) != "wrong-version" {
				t.Errorf("as an answer of another version: %v", err)
			}
		}
	})
	t.Run("many at once", func(t *testing.T) {
		tg, env := s.Open(t, behave)
		var group sync.WaitGroup
		for i := range 16 {
			group.Go(func() {
				q := s.Question
				q.ID = fmt.Sprintf("%s-%d", q.ID, i)
				raw, err := tg.Encode(q)
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				x := tg.Send(ctx, raw)
				if x.Failure != nil {
					t.Error(x.Failure)
					return
				}
				a, err := tg.Decode(q, x.Response)
				if err != nil {
					t.Error(err)
					return
				}
				s.Check(t, a)
			})
		}
		group.Wait()
		if n := env.Requests(); n != 16 {
			t.Errorf("16 questions arrived %d times", n)
		}
	})
	t.Run("description", func(t *testing.T) {
		tg, _ := s.Open(t, behave)
		if d, err := tg.Describe(t.Context()); err != nil || d.Model != s.Question.Model {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		tg, env := s.Open(t, behave)
		env.Close()
		if _, err := tg.Describe(t.Context()); err == nil {
			t.Error("described an environment that is not there")
		}
		if _, x, err := ask(t, tg); x.Failure == nil || x.Failure.Class != "connection" {
			t.Errorf("%+v, %v", x, err)
		}
	})
	for what, q := range s.Bad {
		t.Run("cannot be asked: "+what, func(t *testing.T) {
			tg, _ := s.Open(t, behave)
			if raw, err := tg.Encode(q); err == nil {
				t.Errorf("encoded as %q", raw)
			} else {
				t.Log(err)
			}
		})
	}
	for _, fault := range Required {
		if s.Faults[fault] == "" && s.Excused[fault] == "" {
			t.Errorf("the fault %q is neither tested nor excused", fault)
		}
	}
	for fault, want := range s.Faults {
		t.Run("fault "+fault, func(t *testing.T) {
			tg, env := s.Open(t, func(int) string { return fault })
			if fault == "hang" {
				patience = 500 * time.Millisecond
				defer func() { patience = 30 * time.Second }()
			}
			a, x, err := ask(t, tg)
			if n := env.Requests(); n > 1 {
				t.Errorf("one question arrived %d times", n)
			}
			t.Logf("%v", err)
			if want == Answer {
				if err != nil {
					t.Errorf("%v; it is an answer, if another one than expected", err)
					return
				}
				if silent := passes(s.Check, a); silent {
					t.Errorf("it passes for the right answer: %+v", a)
				}
				return
			}
			if got := classOf(err); got != want {
				t.Errorf("%v is of class %q, want %q", err, got, want)
			}
			if x.Failure == nil && !slices.Contains(target.Classes, want) {
				t.Errorf("class %q is not one of target.Classes", want)
			}
			// The next question is answered as ever: nothing is left over.
			if fault == "hang" || fault == "close" {
				return
			}
			tg, _ = s.Open(t, func(n int) string {
				if n == 1 {
					return fault
				}
				return ""
			})
			ask(t, tg)
			if a, _, err := ask(t, tg); err != nil {
				t.Errorf("the question after it: %v", err)
			} else {
				s.Check(t, a)
			}
		})
	}
}

// passes runs a check without letting it fail the test.
func passes(check func(testing.TB, *target.Answer), a *target.Answer) bool {
	r := &recorder{}
	done := make(chan struct{})
	go func() { // Fatal ends the goroutine
		defer close(done)
		check(r, a)
	}()
	<-done
	return !r.failed
}

// A recorder notes that a check failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Error(...any)          { r.failed = true }
func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Fatal(...any)          { r.failed = true; runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; runtime.Goexit() }

func classOf(err error) string {
	var wrong *target.Wrong
	var failure *target.Failure
	switch {
	case errors.As(err, &wrong):
		return wrong.Class
	case errors.As(err, &failure):
		return failure.Class
	}
	return ""
}

func checkExchange(t *testing.T, x target.Exchange) {
	t.Helper()
	if x.Sent.IsZero() || x.Received.Before(x.Sent) {
		t.Errorf("times %v to %v", x.Sent, x.Received)
	}
	if x.Failure != nil {
		if x.Status != 0 || x.Failure.Class == "" || x.Failure.Message == "" {
			t.Errorf("a failure with status %d: %+v", x.Status, x.Failure)
		}
		return
	}
	if x.Status == 0 || len(x.Body) == 0 {
		t.Errorf("neither an answer nor a failure: %+v", x)
	}
	last := target.Arrival{}
	for _, a := range x.Arrivals {
		if a.Bytes <= last.Bytes || a.Bytes > len(x.Body) || a.After < last.After {
			t.Errorf("arrivals are out of order: %v", x.Arrivals)
		}
		last = a
	}
	if len(x.Arrivals) > 0 && last.Bytes != len(x.Body) {
		t.Errorf("the last arrival is at %d of %d bytes", last.Bytes, len(x.Body))
	}
	for k := range x.Header {
		if strings.ToLower(k) == k {
			t.Errorf("header %q is not in its canonical form", k)
		}
	}
}
