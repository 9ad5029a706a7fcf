package oip

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// The messages as protobuf's own library reads and writes them, from their
// published names and numbers: a second reader beside our own.
var messages = func() protoreflect.MessageDescriptors {
	field := func(name string, number int, kind string) string {
		label := "LABEL_OPTIONAL"
		if rest, ok := strings.CutPrefix(kind, "*"); ok {
			label, kind = "LABEL_REPEATED", rest
		}
		if strings.HasPrefix(kind, ".") {
			return fmt.Sprintf("field{name:%q number:%d label:%s type:TYPE_MESSAGE type_name:%q}", name, number, label, kind)
		}
		return fmt.Sprintf("field{name:%q number:%d label:%s type:TYPE_%s}", name, number, label, strings.ToUpper(kind))
	}
	message := func(name string, inner ...string) string {
		return fmt.Sprintf("message_type{name:%q %s}\n", name, strings.Join(inner, " "))
	}
	tensor := func(name string) string {
		return message(name, field("name", 1, "string"), field("datatype", 2, "string"), field("shape", 3, "*int64"), field("contents", 5, ".inference.InferTensorContents"))
	}
	duration := ".inference.StatisticDuration"
	text := `name:"open_inference_grpc.proto" package:"inference" syntax:"proto3"` + "\n" +
		message("Named", field("name", 1, "string"), field("version", 2, "string")) +
		message("ModelReadyResponse", field("ready", 1, "bool")) +
		message("ServerMetadataResponse", field("name", 1, "string"), field("version", 2, "string"), field("extensions", 3, "*string")) +
		message("ModelMetadataResponse", field("name", 1, "string"), field("versions", 2, "*string"), field("platform", 3, "string"), field("inputs", 4, "*.inference.InferInputTensor"), field("outputs", 5, "*.inference.InferInputTensor")) +
		message("InferTensorContents", field("bool_contents", 1, "*bool"), field("int_contents", 2, "*int32"), field("int64_contents", 3, "*int64"), field("uint_contents", 4, "*uint32"),
			field("uint64_contents", 5, "*uint64"), field("fp32_contents", 6, "*float"), field("fp64_contents", 7, "*double"), field("bytes_contents", 8, "*bytes")) +
		tensor("InferInputTensor") + tensor("InferOutputTensor") + tensor("InferRequestedOutputTensor") +
		message("ModelInferRequest", field("model_name", 1, "string"), field("model_version", 2, "string"), field("id", 3, "string"), field("inputs", 5, "*.inference.InferInputTensor"),
			field("outputs", 6, "*.inference.InferRequestedOutputTensor"), field("raw_input_contents", 7, "*bytes")) +
		message("ModelInferResponse", field("model_name", 1, "string"), field("model_version", 2, "string"), field("id", 3, "string"), field("outputs", 5, "*.inference.InferOutputTensor"), field("raw_output_contents", 6, "*bytes")) +
		message("StatisticDuration", field("count", 1, "uint64"), field("ns", 2, "uint64")) +
		message("InferStatistics", field("success", 1, duration), field("cache_hit", 7, duration)) +
		message("ModelStatistics", field("name", 1, "string"), field("version", 2, "string"), field("inference_count", 4, "uint64"), field("execution_count", 5, "uint64"), field("inference_stats", 6, ".inference.InferStatistics")) +
		message("ModelStatisticsResponse", field("model_stats", 1, "*.inference.ModelStatistics")) +
		message("InstanceGroup", field("name", 1, "string"), field("count", 2, "int32"), field("gpus", 3, "*int32"), field("kind", 4, "int32")) +
		message("ModelParameter", field("string_value", 1, "string")) +
		message("ParameterEntry", field("key", 1, "string"), field("value", 2, ".inference.ModelParameter")) +
		message("ResponseCache", field("enable", 1, "bool")) +
		message("ModelConfig", field("name", 1, "string"), field("max_batch_size", 4, "int32"), field("instance_group", 7, "*.inference.InstanceGroup"), field("parameters", 14, "*.inference.ParameterEntry"),
			field("backend", 17, "string"), field("response_cache", 24, ".inference.ResponseCache")) +
		message("ModelConfigResponse", field("config", 1, ".inference.ModelConfig"))
	var file descriptorpb.FileDescriptorProto
	if err := prototext.Unmarshal([]byte(text), &file); err != nil {
		panic(err)
	}
	d, err := protodesc.NewFile(&file, nil)
	if err != nil {
		panic(err)
	}
	return d.Messages()
}()

// pack turns the JSON of a message into its bytes, unpack the reverse.
func pack(t testing.TB, name, text string) []byte {
	t.Helper()
	m := dynamicpb.NewMessage(messages.ByName(protoreflect.Name(name)))
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func unpack(name string, raw []byte, out any) error {
	m := dynamicpb.NewMessage(messages.ByName(protoreflect.Name(name)))
	if err := proto.Unmarshal(raw, m); err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, out)
}

// A grpcServer is targettest's model over gRPC.
type grpcServer struct {
	*grpc.Server
	t               testing.TB
	misbehave       func(int) string
	cached          bool
	requests        atomic.Int64
	inferences, hit atomic.Int64
	url             string
}

func (s *grpcServer) Requests() int { return int(s.requests.Load()) }
func (s *grpcServer) Close()        { s.Stop() }

// raw passes bytes on the server's side.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

func newGRPCServer(t testing.TB, misbehave func(int) string) *grpcServer {
	s := &grpcServer{t: t, misbehave: misbehave}
	s.Server = grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		response, err := s.answer(stream.Context(), strings.TrimPrefix(method, service), request)
		if err != nil {
			return err
		}
		return stream.SendMsg(response)
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(s.Stop)
	s.url = "grpc://" + l.Addr().String()
	return s
}

func (s *grpcServer) answer(ctx context.Context, method string, request []byte) ([]byte, error) {
	switch method {
	case "ModelReady":
		return pack(s.t, "ModelReadyResponse", `{"ready":true}`), nil
	case "ServerMetadata":
		return pack(s.t, "ServerMetadataResponse", `{"name":"fake","version":"1","extensions":["model_configuration","statistics"]}`), nil
	case "ModelMetadata":
		return pack(s.t, "ModelMetadataResponse", `{"name":"m","versions":["1"],"platform":"fake","inputs":[{"name":"features","datatype":"FP32","shape":["-1","2"]}],"outputs":[{"name":"probabilities","datatype":"FP32","shape":["-1","2"]}]}`), nil
	case "ModelConfig":
		return pack(s.t, "ModelConfigResponse", fmt.Sprintf(`{"config":{"name":"m","backend":"fake","max_batch_size":1024,"instance_group":[{"name":"m_0","kind":2,"count":1}],"response_cache":{"enable":%v},"parameters":[{"key":"precision","value":{"string_value":"fp32"}}]}}`, s.cached)), nil
	case "ModelStatistics":
		return pack(s.t, "ModelStatisticsResponse", fmt.Sprintf(`{"model_stats":[{"name":"m","version":"1","inference_count":"%d","inference_stats":{"cache_hit":{"count":"%d"}}}]}`, s.inferences.Load(), s.hit.Load())), nil
	case "ModelInfer":
	default:
		return nil, status.Error(codes.Unimplemented, method)
	}
	n := int(s.requests.Add(1))
	if s.cached && n > 1 {
		s.hit.Add(1)
	} else {
		s.inferences.Add(1)
	}
	var q struct {
		Model   string            `json:"model_name"`
		Version string            `json:"model_version"`
		ID      string            `json:"id"`
		Inputs  []json.RawMessage `json:"inputs"`
		Raw     []string          `json:"raw_input_contents"`
	}
	if err := unpack("ModelInferRequest", request, &q); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	fault := ""
	if s.misbehave != nil {
		fault = s.misbehave(n)
	}
	answer := map[string]any{"model_name": q.Model, "model_version": q.Version, "id": q.ID}
	outputs, contents := q.Inputs, q.Raw
	if q.Model == "m" {
		outputs = []json.RawMessage{json.RawMessage(`{"name":"probabilities","datatype":"FP32","shape":["1","2"]}`)}
	}
	switch fault {
	case "other-contents":
		outputs = []json.RawMessage{json.RawMessage(`{"name":"probabilities","datatype":"FP32","shape":["1","2"],"contents":{"fp64_contents":[0.1,0.5]}}`)}
		contents = nil
	case "both-contents":
		outputs = []json.RawMessage{json.RawMessage(`{"name":"probabilities","datatype":"FP32","shape":["1","2"],"contents":{"fp32_contents":[0.1,0.5]}}`)}
	case "shape":
		outputs = []json.RawMessage{json.RawMessage(`{"name":"probabilities","datatype":"FP32","shape":["2","1"]}`)}
	case "drop-output":
		outputs, contents = nil, nil
	case "extra-output":
		outputs, contents = append(outputs, json.RawMessage(`{"name":"more","datatype":"FP32","shape":["0"]}`)), append(contents, "")
	case "raw-count":
		contents = append(contents, "")
	case "wrong-id":
		answer["id"] = "another"
	case "wrong-model":
		answer["model_name"] = "n"
	case "wrong-version":
		answer["model_version"] = "2"
	case "http-500":
		return nil, status.Error(codes.Internal, "CUDA out of memory")
	case "http-429":
		return nil, status.Error(codes.ResourceExhausted, "slow down")
	case "unavailable":
		return nil, status.Error(codes.Unavailable, "loading the model")
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "close":
		go s.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	case "empty":
		return []byte{}, nil
	case "not-json":
		return []byte("<html>busy</html>"), nil
	}
	answer["outputs"], answer["raw_output_contents"] = outputs, contents
	text, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	response := pack(s.t, "ModelInferResponse", string(text))
	if fault == "truncated" {
		response = response[:len(response)-3]
	}
	return response, nil
}

func TestGRPC(t *testing.T) {
	targettest.Test(t, targettest.Subject{
		Open: func(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
			s := newGRPCServer(t, fault)
			return dial(t, s, "1"), s
		},
		Question: question, Check: checkEcho, Bad: bad(),
		Faults: map[string]string{
			"http-500": "http", "http-429": "http", "unavailable": "http", "hang": "timeout", "close": "connection", "empty": "truncated", "not-json": "malformed", "truncated": "malformed",
			"wrong-id": "wrong-id", "wrong-model": "wrong-model", "wrong-version": "wrong-version", "drop-output": "missing-output", "extra-output": "extra-output", "shape": targettest.Answer,
			"other-contents": "malformed", "both-contents": "malformed", "raw-count": "malformed",
		},
		Excused: map[string]string{
			"cached":       "no header says so; see TestGRPCEvidence for the statistics",
			"error-in-200": "an error is a status",
		},
	})
}

func dial(t testing.TB, s *grpcServer, version string) *GRPCTarget {
	tg, err := NewGRPC(attest.Target{Protocol: NameGRPC, URL: s.url, Model: "m", Version: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tg.Close() })
	return tg
}

func TestGRPCKeepsBits(t *testing.T) {
	keepsBits(t, dial(t, newGRPCServer(t, nil), ""), target.Question{ID: "1", Model: "echo", Inputs: tensors()})
}

// Contents that are not raw have a field for each group of datatypes.
func TestGRPCTypedContents(t *testing.T) {
	fields := map[string]string{
		"BOOL": `"bool_contents":[true,false,true]`, "UINT8": `"uint_contents":[0,255]`, "INT8": `"int_contents":[-128,127]`, "UINT16": `"uint_contents":[1,65535]`,
		"INT16": `"int_contents":[-32768,-1]`, "UINT32": `"uint_contents":[1,4294967295]`, "INT32": `"int_contents":[-2147483648,-1]`, "UINT64": `"uint64_contents":["18446744073709551615","9007199254740993"]`,
		"INT64": `"int64_contents":["-9223372036854775808","-9007199254740993"]`, "FP32": `"fp32_contents":[0.1,0.33333334,1e-45,3.4028235e38,-0.0,16777217,1e-45]`,
		"FP64": `"fp64_contents":[0.1,5e-324,-1.7976931348623157e308]`, "BYTES": `"bytes_contents":["","YSLDqQo="]`,
	}
	for _, in := range tensors() {
		shape, _ := json.Marshal(in.Shape)
		body := pack(t, "ModelInferResponse", fmt.Sprintf(`{"model_name":"m","id":"1","outputs":[{"name":"p","datatype":%q,"shape":%s,"contents":{%s}}]}`, in.Datatype, shape, fields[in.Datatype]))
		a, err := GRPC{}.Decode(target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}, target.Response{Status: 200, Header: map[string]string{"Grpc-Status": "0"}, Body: body})
		if fields[in.Datatype] == "" {
			if err == nil {
				t.Errorf("%s came without its bits and was read as %x", in.Datatype, a.Outputs[0].Bits)
			}
			continue
		}
		if err != nil || !bytes.Equal(a.Outputs[0].Bits, in.Bits) {
			t.Errorf("%s: %+v, %v, want %x", in.Datatype, a, err, in.Bits)
		}
	}
	body := pack(t, "ModelInferResponse", `{"model_name":"m","id":"1","outputs":[{"name":"p","datatype":"UINT8","shape":[1],"contents":{"uint_contents":[256]}}]}`)
	if a, err := (GRPC{}).Decode(target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}, target.Response{Status: 200, Header: map[string]string{"Grpc-Status": "0"}, Body: body}); err == nil {
		t.Errorf("256 became the UINT8 %x", a.Outputs[0].Bits)
	}
}

func TestGRPCEvidence(t *testing.T) {
	for _, cached := range []bool{false, true} {
		s := newGRPCServer(t, nil)
		s.cached = cached
		checkEvidence(t, dial(t, s, "1"), cached)
	}
}

// A server of another protocol gives no answer that passes for one.
func TestGRPCMeetsHTTP(t *testing.T) {
	s := httptest.NewServer(nil)
	defer s.Close()
	tg, err := NewGRPC(attest.Target{Protocol: NameGRPC, URL: "grpc://" + s.Listener.Addr().String(), Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Close()
	if _, err := tg.Describe(t.Context()); err == nil {
		t.Error("described an HTTP server")
	}
}
