package main

import (
	"context"
	"errors"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/assay-dev/assay/examples/environments/gomlx/inference"
)

// grpcServer is the same server over gRPC.
type grpcServer struct {
	pb.UnimplementedGRPCInferenceServiceServer
	*server
}

func newGRPC(s *server) *grpc.Server {
	g := grpc.NewServer()
	pb.RegisterGRPCInferenceServiceServer(g, &grpcServer{server: s})
	return g
}

func (s *grpcServer) ServerLive(context.Context, *pb.ServerLiveRequest) (*pb.ServerLiveResponse, error) {
	return &pb.ServerLiveResponse{Live: true}, nil
}

func (s *grpcServer) ServerReady(context.Context, *pb.ServerReadyRequest) (*pb.ServerReadyResponse, error) {
	return &pb.ServerReadyResponse{Ready: true}, nil
}

// serves says why a request is for no model of this server, or nil.
func (s *grpcServer) serves(name, version string) error {
	if name != s.name || version != "" && version != s.version {
		return status.Errorf(codes.NotFound, "there is no model %q, version %q, here; the model is %s, version %s", name, version, s.name, s.version)
	}
	return nil
}

func (s *grpcServer) ModelReady(_ context.Context, q *pb.ModelReadyRequest) (*pb.ModelReadyResponse, error) {
	return &pb.ModelReadyResponse{Ready: true}, s.serves(q.Name, q.Version)
}

func (s *grpcServer) ServerMetadata(context.Context, *pb.ServerMetadataRequest) (*pb.ServerMetadataResponse, error) {
	return &pb.ServerMetadataResponse{Name: "gomlx-oip", Version: "1", Extensions: []string{"statistics"}}, nil
}

func (s *grpcServer) ModelMetadata(_ context.Context, q *pb.ModelMetadataRequest) (*pb.ModelMetadataResponse, error) {
	pre := s.model.pre
	tensor := func(name string, width int) []*pb.ModelMetadataResponse_TensorMetadata {
		return []*pb.ModelMetadataResponse_TensorMetadata{{Name: name, Datatype: "FP32", Shape: []int64{-1, int64(width)}}}
	}
	return &pb.ModelMetadataResponse{
		Name: s.name, Versions: []string{s.version}, Platform: "onnx_gomlx_simplego",
		Inputs: tensor(pre.Input, len(pre.Mean)), Outputs: tensor(pre.Output, len(pre.Labels)),
	}, s.serves(q.Name, q.Version)
}

func (s *grpcServer) ModelStatistics(_ context.Context, q *pb.ModelStatisticsRequest) (*pb.ModelStatisticsResponse, error) {
	return &pb.ModelStatisticsResponse{ModelStats: []*pb.ModelStatistics{{
		Name: s.name, Version: s.version, InferenceCount: uint64(s.inferences.Load()), ExecutionCount: uint64(s.executions.Load()),
		InferenceStats: &pb.InferStatistics{Success: &pb.StatisticDuration{Count: uint64(s.requests.Load())}, CacheHit: &pb.StatisticDuration{}},
	}}}, s.serves(q.Name, q.Version)
}

func (s *grpcServer) ModelInfer(_ context.Context, q *pb.ModelInferRequest) (*pb.ModelInferResponse, error) {
	if err := s.serves(q.ModelName, q.ModelVersion); err != nil {
		return nil, err
	}
	n := s.requests.Add(1)
	kind, _ := s.fault(n)
	if kind == "http500" || kind == "error-in-200" {
		return nil, status.Error(codes.Internal, "out of memory")
	}
	if len(q.Inputs) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "one input %q is expected", s.model.pre.Input)
	}
	in := q.Inputs[0]
	asked := question{input: in.Name, datatype: in.Datatype, shape: in.Shape, features: in.GetContents().GetFp32Contents()}
	raw := len(q.RawInputContents) > 0
	if raw {
		// "If this field is specified then InferInputTensor::contents must not
		// be specified for any input tensor."
		if len(q.RawInputContents) != 1 || in.Contents != nil || len(q.RawInputContents[0])%4 != 0 {
			return nil, status.Error(codes.InvalidArgument, "raw_input_contents do not fit the inputs")
		}
		asked.features = floats(q.RawInputContents[0])
	}
	for _, o := range q.Outputs {
		asked.outputs = append(asked.outputs, o.Name)
	}
	rows, values, err := s.predict(n, asked)
	if err != nil {
		code := codes.InvalidArgument
		if errors.Is(err, errComputing) {
			code = codes.Internal
		}
		return nil, status.Error(code, err.Error())
	}
	out := &pb.ModelInferResponse_InferOutputTensor{Name: s.model.pre.Output, Datatype: "FP32", Shape: []int64{rows, int64(len(s.model.pre.Labels))}}
	answer := &pb.ModelInferResponse{ModelName: s.name, ModelVersion: s.version, Id: q.Id, Outputs: []*pb.ModelInferResponse_InferOutputTensor{out}}
	switch kind {
	case "nan":
		values[0] = float32(math.NaN())
	case "shape":
		out.Shape = []int64{int64(len(values))}
	case "dtype":
		out.Datatype = "FP64"
	}
	bits := bytesOf(values)
	switch {
	case kind == "drop-output":
		answer.Outputs = nil
	case raw:
		answer.RawOutputContents = [][]byte{bits}
	default:
		out.Contents = &pb.InferTensorContents{Fp32Contents: values}
	}
	return answer, nil
}
