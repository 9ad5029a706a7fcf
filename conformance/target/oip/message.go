package oip

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/tensor"
	"github.com/assay-dev/assay/conformance/target/wire"
)

// The messages are written and read by hand, from the field numbers of
// open_inference_grpc.proto: "the encoding of a message is not canonical"
// (protobuf.dev, serialization), and ours is hashed, so its order is ours.

// GRPC implements [target.Protocol] over gRPC, with every tensor as raw bytes:
// "the FP16 and BF16 data types must be represented as raw content".
type GRPC struct{}

var _ target.Protocol = GRPC{}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b // proto3: the default is not written
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBytes(b []byte, field protowire.Number, s []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// appendStatus writes a google.rpc.Status.
func appendStatus(b []byte, code int32, message string) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), uint64(code))
	return appendString(b, 2, message)
}

// Encode implements [target.Protocol]: a ModelInferRequest, its fields in the
// order of their numbers.
func (GRPC) Encode(q target.Question) ([]byte, error) {
	if err := checkQuestion(q); err != nil {
		return nil, err
	}
	b := appendString(nil, 1, q.Model)
	b = appendString(b, 2, q.Version)
	b = appendString(b, 3, q.ID)
	for _, t := range q.Inputs {
		in := appendString(nil, 1, t.Name)
		in = appendString(in, 2, t.Datatype)
		var shape []byte
		for _, d := range t.Shape {
			shape = protowire.AppendVarint(shape, uint64(d))
		}
		b = appendBytes(b, 5, appendBytes(in, 3, shape))
	}
	for _, name := range q.Outputs {
		b = appendBytes(b, 6, appendString(nil, 1, name))
	}
	for _, t := range q.Inputs {
		b = appendBytes(b, 7, t.Bits)
	}
	return b, nil
}

// Decode implements [target.Protocol].
func (GRPC) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	if r.Header["Grpc-Status"] != "0" {
		code, message, err := readStatus(r.Body)
		if err != nil {
			return nil, target.Wrongf("http", "status %d: %.200q", r.Status, r.Body)
		}
		return nil, target.Wrongf("http", "gRPC status %d (%d): %.200s", code, r.Status, message)
	}
	if err := wire.Check(r); err != nil {
		return nil, err
	}
	var e envelope
	var raw [][]byte
	contents := false
	err := fields(r.Body, func(f field) (err error) {
		switch f.number {
		case 1:
			e.Model, err = f.text()
		case 2:
			e.Version, err = f.text()
		case 3:
			e.ID, err = f.text()
		case 4:
			if e.Parameters == nil {
				e.Parameters = map[string]string{}
			}
			err = f.parameter(e.Parameters)
		case 5:
			t, has, err := readOutput(f)
			if err != nil {
				return err
			}
			contents = contents || has
			e.Outputs = append(e.Outputs, t)
		case 6:
			v, err := f.bytes()
			if err != nil {
				return err
			}
			raw = append(raw, v)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, target.Wrongf("malformed", "%v", err)
	case len(raw) > 0 && contents:
		return nil, target.Wrongf("malformed", "the answer has raw contents and others")
	case len(raw) > 0 && len(raw) != len(e.Outputs):
		return nil, target.Wrongf("malformed", "%d raw contents for %d outputs", len(raw), len(e.Outputs))
	}
	for i := range raw {
		e.Outputs[i].Bits = raw[i]
	}
	return e.answer(q)
}

// A field is one field of a message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	varint uint64 // of VarintType, Fixed32Type and Fixed64Type
	body   []byte // of BytesType
}

// fields calls fn for each field of a message. Groups are refused.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("a message with a damaged tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		f := field{number: number, kind: kind}
		switch kind {
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			f.varint = uint64(v)
		case protowire.Fixed64Type:
			f.varint, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.body, n = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("field %d has a wire type of %d", number, kind)
		}
		if n < 0 {
			return fmt.Errorf("field %d: %w", number, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (f field) bytes() ([]byte, error) {
	if f.kind != protowire.BytesType {
		return nil, fmt.Errorf("field %d has a wire type of %d", f.number, f.kind)
	}
	return f.body, nil
}

func (f field) text() (string, error) {
	b, err := f.bytes()
	return string(b), err
}

func (f field) uint() (uint64, error) {
	if f.kind != protowire.VarintType {
		return 0, fmt.Errorf("field %d has a wire type of %d", f.number, f.kind)
	}
	return f.varint, nil
}

// repeated calls fn for each number of a repeated field of the kind, packed or
// not: "parsers must be able to parse repeated fields that were compiled as
// packed as if they were not packed, and vice versa".
func (f field) repeated(kind protowire.Type, fn func(uint64) error) error {
	if f.kind == kind {
		return fn(f.varint)
	}
	b, err := f.bytes()
	for err == nil && len(b) > 0 {
		var v uint64
		n := 0
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var w uint32
			w, n = protowire.ConsumeFixed32(b)
			v = uint64(w)
		default:
			v, n = protowire.ConsumeFixed64(b)
		}
		if n < 0 {
			return fmt.Errorf("field %d: %w", f.number, protowire.ParseError(n))
		}
		b = b[n:]
		err = fn(v)
	}
	return err
}

// parameter reads an entry of map<string, InferParameter>.
func (f field) parameter(into map[string]string) error {
	b, err := f.bytes()
	if err != nil {
		return err
	}
	key, value := "", ""
	err = fields(b, func(f field) (err error) {
		switch f.number {
		case 1:
			key, err = f.text()
		case 2:
			b, err := f.bytes()
			if err != nil {
				return err
			}
			return fields(b, func(f field) error {
				switch {
				case f.kind == protowire.BytesType:
					value = string(f.body)
				case f.number == 1:
					value = strconv.FormatBool(f.varint != 0)
				case f.number == 4:
					value = strconv.FormatFloat(math.Float64frombits(f.varint), 'g', -1, 64)
				default:
					value = strconv.FormatInt(int64(f.varint), 10)
				}
				return nil
			})
		}
		return err
	})
	into[key] = value
	return err
}

// readOutput reads an InferOutputTensor, and says whether it has contents.
func readOutput(f field) (t compare.Tensor, contents bool, err error) {
	b, err := f.bytes()
	if err != nil {
		return t, false, err
	}
	t.Shape = []int64{}
	var body []byte
	err = fields(b, func(f field) (err error) {
		switch f.number {
		case 1:
			t.Name, err = f.text()
		case 2:
			t.Datatype, err = f.text()
		case 3:
			err = f.repeated(protowire.VarintType, func(v uint64) error {
				t.Shape = append(t.Shape, int64(v))
				return nil
			})
		case 5:
			body, err = f.bytes()
			contents = true
		}
		return err
	})
	if err != nil || !contents {
		return t, contents, err
	}
	// InferTensorContents: the field that belongs to the datatype, and only it.
	number, kind := protowire.Number(0), protowire.VarintType
	switch t.Datatype {
	case "BOOL":
		number = 1
	case "INT8", "INT16", "INT32":
		number = 2
	case "INT64":
		number = 3
	case "UINT8", "UINT16", "UINT32":
		number = 4
	case "UINT64":
		number = 5
	case "FP32":
		number, kind = 6, protowire.Fixed32Type
	case "FP64":
		number, kind = 7, protowire.Fixed64Type
	case "BYTES":
		number, kind = 8, protowire.BytesType
	default:
		return t, contents, fmt.Errorf("output %q: %s has contents that are not raw", t.Name, t.Datatype)
	}
	width := tensor.Widths[t.Datatype]
	err = fields(body, func(f field) error {
		if f.number != number {
			return fmt.Errorf("output %q is %s, and its contents are in field %d", t.Name, t.Datatype, f.number)
		}
		if kind == protowire.BytesType {
			e, err := f.bytes()
			t.Bits = append(binary.LittleEndian.AppendUint32(t.Bits, uint32(len(e))), e...)
			return err
		}
		return f.repeated(kind, func(v uint64) error {
			bits := tensor.AppendUnsigned(nil, v, width)
			// A number that its type cannot hold must not lose its upper bits.
			if back := tensor.Unsigned(bits); back != v && int64(back<<(64-8*width))>>(64-8*width) != int64(v) {
				return fmt.Errorf("output %q: %d is no %s", t.Name, int64(v), t.Datatype)
			}
			t.Bits = append(t.Bits, bits...)
			return nil
		})
	})
	return t, contents, err
}

func readStatus(b []byte) (code int32, message string, err error) {
	err = fields(b, func(f field) (err error) {
		switch f.number {
		case 1:
			v, e := f.uint()
			code, err = int32(v), e
		case 2:
			message, err = f.text()
		}
		return err
	})
	return code, message, err
}

func readReady(b []byte) (ready bool, err error) {
	err = fields(b, func(f field) error {
		if f.number != 1 {
			return nil
		}
		v, err := f.uint()
		ready = v != 0
		return err
	})
	return ready, err
}

func readServerMetadata(b []byte) (name, version string, extensions []string, err error) {
	err = fields(b, func(f field) error {
		s, err := f.text()
		switch f.number {
		case 1:
			name = s
		case 2:
			version = s
		case 3:
			extensions = append(extensions, s)
		}
		return err
	})
	return name, version, extensions, err
}

func readModelMetadata(b []byte, d *target.Description) error {
	return fields(b, func(f field) error {
		s, err := f.text()
		if err != nil {
			return err
		}
		switch f.number {
		case 1:
			d.Model = s
		case 2:
			d.Versions = append(d.Versions, s)
		case 3:
			d.Platform = s
		case 4, 5:
			t, _, err := readOutput(f)
			if err != nil {
				return err
			}
			spec := target.Spec{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
			if f.number == 4 {
				d.Inputs = append(d.Inputs, spec)
			} else {
				d.Outputs = append(d.Outputs, spec)
			}
		}
		return nil
	})
}

// readModelConfig reads what [modelConfig] has of a ModelConfigResponse, by
// the field numbers of Triton's model_config.proto.
func readModelConfig(b []byte) (c modelConfig, err error) {
	message := func(f field, fn func(field) error) error {
		b, err := f.bytes()
		if err != nil {
			return err
		}
		return fields(b, fn)
	}
	err = fields(b, func(f field) error {
		if f.number != 1 {
			return nil
		}
		return message(f, func(f field) (err error) {
			switch f.number {
			case 4: // max_batch_size
				v, e := f.uint()
				c.MaxBatchSize, err = json.Number(strconv.FormatInt(int64(v), 10)), e
			case 7: // instance_group
				c.InstanceGroup = append(c.InstanceGroup, instanceGroup{})
				g := &c.InstanceGroup[len(c.InstanceGroup)-1]
				g.Kind, g.Count = "KIND_AUTO", "0"
				err = message(f, func(f field) (err error) {
					switch f.number {
					case 1:
						g.Name, err = f.text()
					case 2:
						v, e := f.uint()
						g.Count, err = json.Number(strconv.FormatUint(v, 10)), e
					case 3:
						err = f.repeated(protowire.VarintType, func(v uint64) error {
							g.GPUs = append(g.GPUs, int(v))
							return nil
						})
					case 4:
						kinds := []string{"KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"}
						v, e := f.uint()
						if err = e; e == nil && v < uint64(len(kinds)) {
							g.Kind = kinds[v]
						}
					}
					return err
				})
			case 11: // dynamic_batching
				c.DynamicBatching = json.RawMessage(`{"on":true}`)
			case 14: // parameters
				p := map[string]string{}
				if err = f.parameter(p); err == nil {
					if c.Parameters == nil {
						c.Parameters = map[string]configParameter{}
					}
					for k, v := range p {
						c.Parameters[k] = configParameter{v}
					}
				}
			case 17: // backend
				c.Backend, err = f.text()
			case 24: // response_cache
				err = message(f, func(f field) error {
					v, err := f.uint()
					if f.number == 1 {
						c.ResponseCache = &responseCache{v != 0}
					}
					return err
				})
			}
			return err
		})
	})
	return c, err
}

// readStatistics reads a ModelStatisticsResponse.
func readStatistics(b []byte, model, version string) (statistics, error) {
	count := func(f field) (n uint64, err error) { // a StatisticDuration
		b, err := f.bytes()
		if err != nil {
			return 0, err
		}
		err = fields(b, func(f field) (err error) {
			if f.number == 1 {
				n, err = f.uint()
			}
			return err
		})
		return n, err
	}
	found := false
	var out statistics
	err := fields(b, func(f field) error {
		b, err := f.bytes()
		if err != nil || f.number != 1 {
			return err
		}
		var s statistics
		name, v := "", ""
		err = fields(b, func(f field) (err error) {
			switch f.number {
			case 1:
				name, err = f.text()
			case 2:
				v, err = f.text()
			case 4:
				s.Inferences, err = f.uint()
			case 5:
				s.Executions, err = f.uint()
			case 6:
				b, err := f.bytes()
				if err != nil {
					return err
				}
				return fields(b, func(f field) (err error) {
					switch f.number {
					case 1:
						s.Success, err = count(f)
					case 7:
						s.CacheHits, err = count(f)
					}
					return err
				})
			}
			return err
		})
		if name == model && (version == "" || v == version) {
			out, found = s, true
		}
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("the statistics do not have model %s", model)
	}
	return out, err
}
