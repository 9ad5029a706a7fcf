// Package rpc serves what a registry of models knows that a registry of content
// does not: versions, lineage, environments, the gate, the log, and the trust
// file, as the gRPC services of proto/assay/v1 and as JSON over HTTP.
//
// Both transports call the same methods. Interceptors do not run under an
// in-process gateway, so nothing here depends on one: every method goes through
// [answer], which finds out who is asking, and turns errors into statuses by
// the one table in errors.go. What the asker may do is decided by the registry.
package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// Options configure Register and Gateway. Registry is needed.
type Options struct {
	Registry *registry.Registry

	// AuthenticateRPC says who makes a gRPC call, from the metadata and the
	// peer in its context; nil is nobody. For credentials that are wrong it
	// returns an error that is access.ErrUnauthenticated.
	AuthenticateRPC func(context.Context) (access.Actor, error)

	// AuthenticateHTTP is the same for an HTTP request.
	AuthenticateHTTP func(*http.Request) (access.Actor, error)

	// Observe is told of each call when it is over; nil tells nobody.
	Observe func(method string, code codes.Code, took time.Duration)

	// Log takes one line a call; nil discards them.
	Log *slog.Logger
}

// Register adds the services to a gRPC server, with health checking and
// reflection. These two answer everybody: they tell no more than whether the
// server is up and what its published interface is.
func Register(g *grpc.Server, opt Options) {
	s := newServer(opt)
	pb.RegisterModelServiceServer(g, models{server: s})
	pb.RegisterLineageServiceServer(g, lineage{server: s})
	pb.RegisterEnvironmentServiceServer(g, environments{server: s})
	pb.RegisterGateServiceServer(g, gate{server: s})
	pb.RegisterLogServiceServer(g, transparency{server: s})
	pb.RegisterTrustServiceServer(g, trust{server: s})
	pb.RegisterAccessServiceServer(g, accounts{server: s})
	pb.RegisterMaintenanceServiceServer(g, maintenance{server: s})
	healthpb.RegisterHealthServer(g, health{server: s, services: g.GetServiceInfo()})
	reflection.Register(g)
}

type server struct {
	Options
}

func newServer(opt Options) *server {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &server{opt}
}

// A caller is who makes a call. The gateway leaves one in the context, since an
// HTTP request is authenticated as one and not by what became of its headers.
type caller struct {
	actor access.Actor
	query url.Values // of the HTTP request
}

type callerKey struct{}

// identify finds out who is asking, and refuses nobody, whatever was asked.
func identify[Q any](authenticate func(Q) (access.Actor, error), q Q) (access.Actor, error) {
	if authenticate == nil {
		return access.Actor{}, access.ErrUnauthenticated
	}
	actor, err := authenticate(q)
	if err != nil {
		return access.Actor{}, err
	}
	if actor.ID == "" {
		return access.Actor{}, fmt.Errorf("%w: send credentials", access.ErrUnauthenticated)
	}
	return actor, nil
}

// callerOf returns who makes a call that came over either transport.
func (s *server) callerOf(ctx context.Context) (caller, error) {
	if c, ok := ctx.Value(callerKey{}).(caller); ok {
		return c, nil
	}
	actor, err := identify(s.AuthenticateRPC, ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	actor.RequestID = requestID(strings.Join(md.Get("x-request-id"), ""))
	grpc.SetHeader(ctx, metadata.Pairs("x-request-id", actor.RequestID))
	return caller{actor: actor}, err
}

// answer is the way in to every method of every service, on both transports.
func answer[A any](ctx context.Context, s *server, request proto.Message, do func(access.Actor) (A, error)) (A, error) {
	start := time.Now()
	c, err := s.callerOf(ctx)
	if err == nil {
		err = checkQuery(ctx, request.ProtoReflect().Descriptor(), c.query)
	}
	var a A
	if err == nil {
		a, err = guard(do, c.actor)
	}
	status := s.status(ctx, err)
	level := slog.LevelDebug
	if ours(status.Code()) {
		level = slog.LevelError
	}
	method := strings.TrimSuffix(string(request.ProtoReflect().Descriptor().Name()), "Request")
	took := time.Since(start)
	if s.Observe != nil {
		s.Observe(method, status.Code(), took)
	}
	s.Log.Log(ctx, level, "rpc", "request", c.actor.RequestID, "actor", c.actor.ID, "method", method,
		"code", status.Code(), "took", took.Round(time.Microsecond), "error", err)
	if err != nil {
		var none A
		return none, status.Err()
	}
	return a, nil
}

// ours reports whether an operator should see an error of this code.
func ours(c codes.Code) bool { return c == codes.Internal || c == codes.Unavailable }

// guard turns a panic of one call into its error: net/http would do so, and
// grpc-go would take down the server and everybody's uploads with it.
func guard[A any](do func(access.Actor) (A, error), actor access.Actor) (a A, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return do(actor)
}

// requestID takes over the client's id if it is one that can be logged.
func requestID(sent string) string {
	if sent != "" && len(sent) <= 64 && strings.Trim(sent, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.") == "" {
		return sent
	}
	var raw [8]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}
