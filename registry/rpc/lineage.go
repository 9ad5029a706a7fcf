package rpc

import (
	"context"
	"fmt"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

// maxDepth is how far the registry follows lineage.
const maxDepth = 32

// lineage is pb.LineageServiceServer.
type lineage struct {
	pb.UnsafeLineageServiceServer
	*server
}

func (s lineage) GetLineage(ctx context.Context, q *pb.GetLineageRequest) (*pb.GetLineageResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetLineageResponse, error) {
		if err := required("repository", q.GetRepository(), "reference", q.GetReference()); err != nil {
			return nil, err
		}
		if q.GetDepth() < 0 || q.GetDepth() > maxDepth {
			return nil, fmt.Errorf("%w: depth is %d, and must be from 0 to %d", errRequest, q.GetDepth(), maxDepth)
		}
		downward := false
		switch q.GetDirection() {
		case pb.Direction_DIRECTION_UNSPECIFIED, pb.Direction_DIRECTION_UPSTREAM:
		case pb.Direction_DIRECTION_DOWNSTREAM:
			downward = true
		default:
			return nil, fmt.Errorf("%w: direction %d is unknown", errRequest, q.GetDirection())
		}
		g, err := s.Registry.Lineage(ctx, actor, q.GetRepository(), q.GetReference(), downward, int(q.GetDepth()))
		if err != nil {
			return nil, err
		}
		return lineageOf(g)
	})
}
