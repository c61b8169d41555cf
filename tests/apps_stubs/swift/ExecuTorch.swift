// As ExecuTorch's Swift package 1.4.1 has them (extension/apple in its repository).
import Foundation

public protocol Scalar {}
extension Float: Scalar {}
extension Int8: Scalar {}
extension UInt8: Scalar {}
extension Int16: Scalar {}
extension Int32: Scalar {}
extension Int64: Scalar {}
extension Bool: Scalar {}

public protocol ValueConvertible {
    func asValue() -> Value
}

public final class Value: ValueConvertible {
    public func asValue() -> Value { self }
    init() {}
}

public enum ShapeDynamism { case `static`, dynamicBound }

public final class Tensor<T: Scalar>: ValueConvertible {
    public convenience init(
        data: Data, shape: [Int], strides: [Int] = [], dimensionOrder: [Int] = [], shapeDynamism: ShapeDynamism = .dynamicBound
    ) { self.init() }
    public func scalars() -> [T] { [] }
    public func asValue() -> Value { Value() }
    init() {}
}

extension Value {
    public func tensor<T: Scalar>() -> Tensor<T>? { nil }
}

public final class Module {
    public init(filePath: String) {}
    public func load(_ method: String) throws {}
    public func forward(_ inputs: [ValueConvertible]) throws -> [Value] { [] }
}
