package rpc

import (
	"context"

	pb "github.com/assay-dev/assay/proto/assay/v1"
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
		r, err := s.Registry.Decide(ctx, actor, q.GetRepository(), q.GetReference(), q.GetEnvironment())
		if err != nil {
			return nil, err
		}
		return decisionOf(r)
	})
}
