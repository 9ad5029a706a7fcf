package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// health answers the gRPC health checking protocol from the registry itself,
// each time it is asked. It has no Watch: a client that wants one hears
// UNIMPLEMENTED, and takes that as no health checking (gRPC proposal A17).
type health struct {
	healthpb.UnimplementedHealthServer
	*server
	services map[string]grpc.ServiceInfo
}

// Check implements healthpb.HealthServer.
func (h health) Check(ctx context.Context, q *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if _, ok := h.services[q.GetService()]; !ok && q.GetService() != "" {
		return nil, status.Errorf(codes.NotFound, "there is no service %q", q.GetService())
	}
	if err := h.Registry.Ready(ctx); err != nil {
		h.Log.ErrorContext(ctx, "not ready", "error", err)
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}
