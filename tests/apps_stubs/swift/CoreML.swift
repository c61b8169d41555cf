// As Apple's Core ML framework has them.
import CoreVideo
import Foundation

public enum MLMultiArrayDataType: Int { case double = 65600, float32 = 65568, int32 = 131104 }
public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

open class MLMultiArray {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    open var dataPointer: UnsafeMutableRawPointer { fatalError() }
    open var count: Int { 0 }
    open subscript(idx: Int) -> NSNumber { NSNumber(value: 0) }
}

open class MLFeatureValue {
    public init(multiArray value: MLMultiArray) {}
    public init(pixelBuffer value: CVPixelBuffer) {}
    open var multiArrayValue: MLMultiArray? { nil }
    open var dictionaryValue: [AnyHashable: NSNumber] { [:] }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    open func featureValue(for featureName: String) -> MLFeatureValue? { nil }
}

open class MLModelConfiguration {
    public init() {}
    open var computeUnits: MLComputeUnits = .all
}

open class MLModel {
    open class func compileModel(at modelURL: URL) throws -> URL { modelURL }
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}
    open func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider { input }
}
