plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "@@PACKAGE@@.sample"
    compileSdk = @@COMPILE_SDK@@

    defaultConfig {
        applicationId = "@@PACKAGE@@.sample"
        minSdk = @@MIN_SDK@@
        targetSdk = @@COMPILE_SDK@@
        versionCode = 1
        versionName = "1.0"
    }

    androidResources {
        noCompress += listOf("tflite", "pte", "ptl")
    }

    buildFeatures {
        compose = true
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17)
    }
}

dependencies {
    implementation(project(":@@SNAKE@@"))
    implementation(platform(libs.compose.bom))
    implementation(libs.compose.material3)
    implementation(libs.activity.compose)
}
