"""From probes to a prediction for any plan: additive model, trees and cross-validation."""
