package oip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// service is the path of the methods (open_inference_grpc.proto).
const service = "/inference.GRPCInferenceService/"

// GRPCTarget implements [target.Target] and [target.Prober] over gRPC.
type GRPCTarget struct {
	GRPC
	conn           *grpc.ClientConn
	token          string
	model, version string
}

var (
	_ target.Target = (*GRPCTarget)(nil)
	_ target.Prober = (*GRPCTarget)(nil)
)

// bytesCodec lets messages pass as the bytes they are: what is hashed is what
// is sent.
type bytesCodec struct{}

func (bytesCodec) Name() string                    { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (bytesCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte{}, b...); return nil }

// NewGRPC returns the target over gRPC that an environment document names:
// grpc://HOST:PORT in clear, grpcs:// with TLS.
func NewGRPC(t attest.Target) (*GRPCTarget, error) {
	if t.Protocol != NameGRPC {
		return nil, fmt.Errorf("protocol %q is not %s", t.Protocol, NameGRPC)
	}
	var o Options
	if err := t.ReadOptions(&o); err != nil {
		return nil, err
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.Scheme != "grpc" && u.Scheme != "grpcs" {
		return nil, fmt.Errorf("target url %q: write grpc://HOST:PORT, or grpcs:// for TLS", t.URL)
	}
	g := &GRPCTarget{model: t.Model, version: t.Version}
	if o.TokenFrom != "" {
		if g.token = os.Getenv(o.TokenFrom); g.token == "" {
			return nil, fmt.Errorf("the environment variable %s, which has the bearer token of this target, is empty; set it", o.TokenFrom)
		}
	}
	transport := insecure.NewCredentials()
	if u.Scheme == "grpcs" {
		transport = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	g.conn, err = grpc.NewClient("dns:///"+u.Host,
		grpc.WithTransportCredentials(transport),
		// A retry by the library would be an attempt that nobody recorded.
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{}), grpc.MaxCallRecvMsgSize(wire.MaxResponse), grpc.MaxCallSendMsgSize(wire.MaxResponse)),
	)
	return g, err
}

// Close ends the connection.
func (g *GRPCTarget) Close() error { return g.conn.Close() }

func (g *GRPCTarget) call(ctx context.Context, method string, request []byte, options ...grpc.CallOption) (response []byte, err error) {
	if g.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+g.token)
	}
	err = g.conn.Invoke(ctx, service+method, request, &response, options...)
	return response, err
}

// Send implements [target.Target]. A status that the server gave is an answer:
// its body is the google.rpc.Status, its HTTP status the one that
// google/rpc/code.proto maps the code to, and grpc-status is in the header.
func (g *GRPCTarget) Send(ctx context.Context, request []byte) target.Exchange {
	x := target.Exchange{Sent: time.Now().UTC()}
	// A connection of another attempt may have broken since: it is dialled
	// again here, where there is an attempt to record what comes of it.
	if g.conn.GetState() == connectivity.TransientFailure {
		g.conn.ResetConnectBackoff()
	}
	var trailer metadata.MD
	response, err := g.call(ctx, "ModelInfer", request, grpc.Trailer(&trailer))
	x.Received = time.Now().UTC()
	if err == nil {
		if len(response) == 0 {
			x.Failure = &target.Failure{Class: "truncated", Message: "an empty message"}
			return x
		}
		x.Status, x.Body, x.Header = http.StatusOK, response, map[string]string{"Grpc-Status": "0"}
		return x
	}
	s, _ := status.FromError(err)
	failure := ""
	switch {
	case ctx.Err() != nil, s.Code() == codes.DeadlineExceeded, s.Code() == codes.Canceled:
		failure = "timeout"
	case s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "received message larger than max"):
		failure = "too-large"
	// These two are also what the library says when there was no answer. A
	// server's own comes with trailers.
	case s.Code() == codes.Unavailable && len(trailer) == 0:
		failure = "connection"
	case s.Code() == codes.Internal && len(trailer) == 0:
		failure = "truncated"
	}
	if failure != "" {
		x.Failure = &target.Failure{Class: failure, Message: err.Error()}
		return x
	}
	x.Status, x.Body = httpStatus(s.Code()), appendStatus(nil, int32(s.Code()), s.Message())
	x.Header = map[string]string{"Grpc-Status": strconv.Itoa(int(s.Code()))}
	return x
}

// httpStatus is the mapping in google/rpc/code.proto.
func httpStatus(c codes.Code) int {
	switch c {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Describe implements [target.Target].
func (g *GRPCTarget) Describe(ctx context.Context) (target.Description, error) {
	var d target.Description
	named := appendString(appendString(nil, 1, g.model), 2, g.version)
	raw, err := g.call(ctx, "ModelReady", named)
	if err != nil {
		return d, err
	}
	if ready, err := readReady(raw); err != nil || !ready {
		return d, errors.Join(fmt.Errorf("model %s is not ready", g.model), err)
	}
	if raw, err = g.call(ctx, "ServerMetadata", nil); err != nil {
		return d, err
	}
	var extensions []string
	if d.Server, d.ServerVersion, extensions, err = readServerMetadata(raw); err != nil {
		return d, err
	}
	if raw, err = g.call(ctx, "ModelMetadata", named); err != nil {
		return d, err
	}
	if err := readModelMetadata(raw, &d); err != nil {
		return d, err
	}
	for _, e := range extensions {
		if e != "model_configuration" {
			continue
		}
		raw, err := g.call(ctx, "ModelConfig", named)
		if err != nil {
			return d, fmt.Errorf("the server declares the extension model_configuration: %w", err)
		}
		c, err := readModelConfig(raw)
		if err != nil {
			return d, err
		}
		d.Parameters = map[string]string{}
		maps.Copy(d.Parameters, c.evidence())
	}
	return d, nil
}

func (g *GRPCTarget) statistics(ctx context.Context) (statistics, error) {
	raw, err := g.call(ctx, "ModelStatistics", appendString(appendString(nil, 1, g.model), 2, g.version))
	if err != nil {
		return statistics{}, err
	}
	return readStatistics(raw, g.model, g.version)
}

// Probe implements [target.Prober], as [Target.Probe] does.
func (g *GRPCTarget) Probe(ctx context.Context, q target.Question) []target.Check {
	raw, err := g.call(ctx, "ServerMetadata", nil)
	if err != nil {
		return []target.Check{{Name: computes, Detail: err.Error()}}
	}
	_, _, extensions, err := readServerMetadata(raw)
	if err != nil {
		return []target.Check{{Name: computes, Detail: err.Error()}}
	}
	for _, e := range extensions {
		if e == "statistics" {
			return []target.Check{probeCache(ctx, g, q, g.statistics)}
		}
	}
	return nil
}
