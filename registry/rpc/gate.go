package rpc

import (
	"context"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// gate is pb.GateServiceServer.
type gate struct {
	pb.UnsafeGateServiceServer
	*server
}

func (s gate) Decide(ctx context.Context, q *pb.DecideRequest) (*pb.DecideResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.DecideResponse, error) {
		if err := required("repository", q.GetRepository(), "reference", q.GetReference(), "environment", q.GetEnvironment()); err != nil {
			return nil, err
		}
		decide := s.Registry.Decide
		if why := q.GetBreakGlass(); why != "" {
			decide = func(ctx context.Context, actor access.Actor, repo, reference, environment string) (registry.DecisionRecord, error) {
				return s.Registry.BreakGlass(ctx, actor, repo, reference, environment, why)
			}
		}
		r, err := decide(ctx, actor, q.GetRepository(), q.GetReference(), q.GetEnvironment())
		if err != nil {
			return nil, err
		}
		return decisionOf(r)
	})
}
