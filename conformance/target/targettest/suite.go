package targettest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
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

// Test checks an adapter against a [Server]; open connects it to the server's
// model m, version 1.
func Test(t *testing.T, open func(t *testing.T, s *Server) target.Target) {
	echo := func(in []float32) []float32 { return []float32{in[0], in[1]} }
	question := target.Question{ID: "case-1", Model: "m", Version: "1", Outputs: []string{"probabilities"}}
	ask := func(t *testing.T, tg target.Target, in compare.Tensor) (*target.Answer, target.Exchange, error) {
		t.Helper()
		raw, err := tg.Encode(question.ID, []compare.Tensor{in}, question.Outputs)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := tg.Encode(question.ID, []compare.Tensor{in}, question.Outputs)
		if !bytes.Equal(raw, again) {
			t.Error("the same question has other bytes")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		x := tg.Send(ctx, raw)
		if x.Sent.IsZero() || x.Received.Before(x.Sent) {
			t.Errorf("times %v to %v", x.Sent, x.Received)
		}
		if x.Failure != nil {
			return nil, x, x.Failure
		}
		a, err := tg.Decode(question, x.Status, x.Response)
		return a, x, err
	}
	t.Run("bits survive", func(t *testing.T) {
		tg := open(t, NewServer(t, echo))
		for _, v := range []float32{0.1, 1.0 / 3, math.SmallestNonzeroFloat32, math.MaxFloat32, float32(math.Copysign(0, -1)), 16777217, 1e-45} {
			in := FP32("features", []int64{1, 2}, v, -v)
			a, _, err := ask(t, tg, in)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a.Outputs[0].Bits, in.Bits) {
				t.Errorf("%v came back as other bits", v)
			}
		}
	})
	t.Run("description", func(t *testing.T) {
		d, err := open(t, NewServer(t, echo)).Describe(t.Context())
		if err != nil || d.Model != "m" || len(d.Inputs) != 1 || len(d.Outputs) != 1 {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		s := NewServer(t, echo)
		tg := open(t, s)
		s.Close()
		if _, err := tg.Describe(t.Context()); err == nil {
			t.Error("described a server that is down")
		}
		_, x, err := ask(t, tg, FP32("features", []int64{1, 2}, 1, 2))
		if err == nil || x.Failure == nil || x.Failure.Class != "connection" {
			t.Errorf("%+v, %v", x, err)
		}
	})
	for _, fault := range Faults {
		t.Run(fault, func(t *testing.T) {
			s := NewServer(t, echo)
			s.Misbehave = func(int) string { return fault }
			a, _, err := ask(t, open(t, s), FP32("features", []int64{1, 2}, 0.5, 0.5))
			if fault == "shape" || fault == "dtype" {
				// An answer to the question, and another one than expected:
				// that is for the comparison to find.
				want := FP32("probabilities", []int64{1, 2}, 0.5, 0.5)
				if err == nil && compare.Tensors(want, a.Outputs[0], compare.Tolerance{Absolute: 9}).Broken == "" {
					t.Error("it passes")
				}
				return
			}
			var wrong *target.Wrong
			var failure *target.Failure
			if a != nil || !errors.As(err, &wrong) && !errors.As(err, &failure) {
				t.Errorf("answer %+v, error %v", a, err)
			}
			t.Logf("%v", err)
		})
	}
	if _, err := open(t, NewServer(t, echo)).Encode("x", []compare.Tensor{FP32("features", []int64{1, 2}, float32(math.NaN()), 1)}, nil); err == nil {
		t.Error("NaN was encoded")
	}
}
