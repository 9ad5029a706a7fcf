package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/assay-dev/assay/examples/environments/gomlx/inference"
)

// The three ways to the model give the same bits.
func TestThreeProtocolsOneAnswer(t *testing.T) {
	o := options{name: "m", version: "1", model: load(t, "credit/1.4.0", false)}
	base := serve(t, o)
	g := newGRPC(&server{options: o})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go g.Serve(l)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewGRPCInferenceServiceClient(conn)
	for _, c := range cases(t, "credit")[:20] {
		_, r, _ := infer(t, base, c)
		want := r.Outputs[0].Data
		in := c.Inputs["features"]
		var features []float32
		if err := json.Unmarshal(in.Data, &features); err != nil {
			t.Fatal(err)
		}

		head := fmt.Sprintf(`{"id":%q,"inputs":[{"name":"features","shape":[1,8],"datatype":"FP32","parameters":{"binary_data_size":32}}],"parameters":{"binary_data_output":true}}`, c.ID)
		req, _ := http.NewRequest("POST", base+"/infer", bytes.NewReader(append([]byte(head), bytesOf(features)...)))
		req.Header.Set("Inference-Header-Content-Length", strconv.Itoa(len(head)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		n, err := strconv.Atoi(resp.Header.Get("Inference-Header-Content-Length"))
		if err != nil || !slices.Equal(floats(body[n:]), want) {
			t.Errorf("%s as bytes: %q, want %v", c.ID, body, want)
		}

		for _, raw := range []bool{true, false} {
			q := &pb.ModelInferRequest{ModelName: "m", Id: c.ID, Inputs: []*pb.ModelInferRequest_InferInputTensor{{Name: "features", Datatype: "FP32", Shape: in.Shape}}}
			if raw {
				q.RawInputContents = [][]byte{bytesOf(features)}
			} else {
				q.Inputs[0].Contents = &pb.InferTensorContents{Fp32Contents: features}
			}
			a, err := client.ModelInfer(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			got := a.Outputs[0].GetContents().GetFp32Contents()
			if raw {
				got = floats(a.RawOutputContents[0])
			}
			if a.Id != c.ID || !slices.Equal(got, want) {
				t.Errorf("%s over gRPC, raw %v: %v, want %v", c.ID, raw, got, want)
			}
		}
	}
	_, err = client.ModelInfer(t.Context(), &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{{Name: "features", Datatype: "FP32", Shape: []int64{1, 8}}}, RawInputContents: [][]byte{{1, 2}}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("contents that do not fit: %v", err)
	}
	stats, err := client.ModelStatistics(t.Context(), &pb.ModelStatisticsRequest{Name: "m"})
	if err != nil || stats.ModelStats[0].InferenceCount != 40 {
		t.Errorf("%v, %v", stats, err)
	}
}
